"""Commands about providers: which there are, whether they answer, where they live, and those kept in the database."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
from pydantic import SecretStr

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import (
    SecretInput,
    as_cell,
    confirm,
    json_option,
    show_json,
    show_table,
    yes_option,
)
from secure_llm_proxy.cli.outside_places import OutsidePlace, named_places
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.routing import configured_providers, models_file_of
from secure_llm_proxy.routing.stored_providers import (
    KeyState,
    StoredProvider,
    StoredProviderExists,
    StoredProviders,
    new_provider_id,
)
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.upstream.destinations import read_own_hosts
from secure_llm_proxy.upstream.endpoint import Endpoint, parse_endpoint
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion, Target
from secure_llm_proxy.vocabulary.conversation import Conversation, Message, Role, Text
from secure_llm_proxy.vocabulary.providers import Patience, ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

Command = TypeVar("Command", bound=Callable[..., Any])

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_QUESTION = "Answer with the one word OK."
_SECONDS = click.FloatRange(0, min_open=True)

_provider_argument = click.argument("name")
_key_stdin_option = click.option("--key-stdin", is_flag=True, help="Read the keys from standard input, one a line.")
_no_key_option = click.option("--no-key", is_flag=True, help="It needs none.")


@dataclass(frozen=True, slots=True)
class _Configured:
    """A provider that is configured anywhere; `stored` is set for one in the database."""

    definition: ProviderDefinition
    stored: StoredProvider | None = None

    @property
    def key_state(self) -> KeyState:
        if self.stored is not None:
            return self.stored.key_state
        return KeyState.SET if self.definition.keys else KeyState.NOT_NEEDED


@dataclass(slots=True)
class _Place:
    """What is at a place, and where it was configured."""

    providers: list[str] = field(default_factory=list)
    purposes: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)

    def told(self) -> dict[str, list[str]]:
        return {"providers": self.providers, "for": sorted(self.purposes), "sources": sorted(self.sources)}


def _paths_option(command: Command) -> Command:
    return click.option(
        "--path",
        "paths",
        multiple=True,
        metavar="FORMAT=PATH",
        help="A wire format that it speaks, and its path, instead of those of its kind. Repeat it.",
    )(command)


@click.group()
def providers() -> None:
    """Providers: which there are, whether they answer, and those that are kept in the database."""


@providers.command("list")
@json_option
@pass_context
def list_providers(context: CommandContext, *, as_json: bool) -> None:
    """List every configured provider: of the environment, of the models file, of the database."""
    configured = _configured(context)
    if as_json:
        show_json([_told(each) for each in configured])
        return
    show_table(
        ("name", "kind", "url", "key", "models", "tags", "source"),
        [
            (
                each.definition.name,
                each.definition.kind,
                _url_of(each.definition),
                each.key_state,
                len(each.definition.models) or "its own list",
                tuple(f"{key}={value}" for key, value in each.definition.tags.items()) or None,
                each.definition.source,
            )
            for each in configured
        ],
        empty="There are no providers, the demo model answers; add one with: manage.py providers add NAME --kind KIND",
    )


@providers.command("test")
@_provider_argument
@click.option(
    "--model", help="Ask this model a question of a few tokens, too. Needed where the provider lists no models."
)
@json_option
@pass_context
def test_provider(context: CommandContext, name: str, model: str | None, *, as_json: bool) -> None:
    """Speak to the provider NAME as the proxy would: list its models, ask one. Exit 1 when it does not answer well."""
    definition = _usable(context, name)
    lists = provider_kinds()[definition.kind].models is not None
    if not lists and model is None:
        raise OperatorError(f"Providers of the kind {definition.kind} list no models; name one with --model.")
    steps: list[dict[str, object]] = []
    reached = Providers(context.settings.upstream, (replace(definition, models=()),))
    try:
        if lists:
            steps.append(_timed("list models", lambda: _list_models(reached, name, definition)))
        if model is not None:
            steps.append(_timed(f"ask {model}", lambda: _ask(reached, name, model)))
    finally:
        reached.close()
    if as_json:
        show_json({"name": name, "ok": all(step["ok"] for step in steps), "steps": steps})
    else:
        show_table(
            ("step", "well", "ms", "what"),
            [(step["step"], step["ok"], step["ms"], step["what"]) for step in steps],
            empty="",
        )
    if not all(step["ok"] for step in steps):
        sys.exit(1)


@providers.command("add")
@_provider_argument
@click.option("--kind", type=click.Choice(list(provider_kinds())), required=True, help="What kind of provider it is.")
@click.option("--url", help="Its base URL, with what must stand behind a `?`. Default: that of its kind.")
@click.option("--model", "models", multiple=True, help="A model on offer. Repeat it; none: the provider's own list.")
@click.option(
    "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="What routes may ask for: region=eu. Repeat it."
)
@_paths_option
@click.option(
    "--connect-timeout", type=_SECONDS, help="Seconds; without it and the next three, as the settings have it."
)
@click.option("--first-byte-timeout", type=_SECONDS, help="Seconds until the answer begins.")
@click.option("--idle-timeout", type=_SECONDS, help="Seconds between two bytes of the answer.")
@click.option("--total-timeout", type=_SECONDS, help="Seconds for the whole answer.")
@click.option("--no-usage-in-streams", is_flag=True, help="Do not ask it for the usage of streams: it refuses that.")
@_key_stdin_option
@_no_key_option
@json_option
@pass_context
def add_provider(
    context: CommandContext,
    name: str,
    kind: str,
    url: str | None,
    models: tuple[str, ...],
    tags: tuple[str, ...],
    paths: tuple[str, ...],
    connect_timeout: float | None,
    first_byte_timeout: float | None,
    idle_timeout: float | None,
    total_timeout: float | None,
    *,
    no_usage_in_streams: bool,
    key_stdin: bool,
    no_key: bool,
    as_json: bool,
) -> None:
    """Keep the provider NAME in the database, its key sealed. The key is asked for, without echo. In use within 5 s."""
    place = url or provider_kinds()[kind].base_url
    if place is None:
        raise OperatorError(f"Providers of the kind {kind} have no common URL; give this one's with --url.")
    base_url, query = _place(context, place)
    definition = ProviderDefinition(
        name=name,
        kind=kind,
        base_url=base_url,
        query=query,
        models=models,
        patience=Patience(connect_timeout, first_byte_timeout, idle_timeout, total_timeout),
        tags=dict(_pair(tag, "--tag") for tag in tags),
        formats=_formats(paths),
        usage_in_streams=not no_usage_in_streams,
        source="database",
    )
    stored = context.stored_providers
    stored.require_addable(definition)
    _require_free(context, name)
    definition = replace(definition, keys=_keys(key_stdin=key_stdin, no_key=no_key))
    stored.require_addable(definition)
    _require_tls(context, definition.base_url, definition.keys)
    provider_id, by = new_provider_id(), f"host:{getpass.getuser()}"
    made = context.change(
        "provider.add",
        provider_id,
        _clear(definition, keys=len(definition.keys)),
        {"url": _url_of(definition), "models": list(models), "tags": dict(definition.tags)},
        lambda session: stored.add(session, definition, created_by=by, provider_id=provider_id),
    )
    if as_json:
        show_json(_told(_Configured(made.definition, made)))
        return
    click.echo(f"{name} is a provider ({made.id}), everywhere within 5 s. Try it: manage.py providers test {name}")


@providers.command("change-url")
@_provider_argument
@click.argument("url")
@yes_option
@json_option
@pass_context
def change_url(context: CommandContext, name: str, url: str, *, yes: bool, as_json: bool) -> None:
    """Let the provider NAME of the database live at URL. Its keys are erased: they were given for another place."""
    stored, there = _find(context, name)
    base_url, query = _place(context, url)
    if (base_url, query) == (there.definition.base_url, there.definition.query):
        raise OperatorError(f"{name} lives there already; nothing was changed.")
    if there.key_state is not KeyState.NOT_NEEDED:
        confirm(f"Erase the keys of {name}, which were given for {there.definition.base_url}?", yes=yes)
    made = context.change(
        "provider.change_url",
        there.id,
        _clear(there.definition),
        {"url": _url_of(replace(there.definition, base_url=base_url, query=query)), "was": _url_of(there.definition)},
        lambda session: stored.change_url(session, name, base_url, query=query, version=there.version),
    )
    if as_json:
        show_json(_told(_Configured(made.definition, made)))
        return
    click.echo(f"{name} lives at {as_cell(_url_of(made.definition))}, everywhere within 5 s.")
    if made.key_state is KeyState.MISSING:
        click.echo(f"It is not asked until it has a key again: manage.py providers set-key {name}")


@providers.command("set-key")
@_provider_argument
@_key_stdin_option
@_no_key_option
@json_option
@pass_context
def set_key(context: CommandContext, name: str, *, key_stdin: bool, no_key: bool, as_json: bool) -> None:
    """Give the provider NAME of the database another key, or several. In use within 5 s; the old ones are gone."""
    stored, there = _find(context, name)
    keys = _keys(key_stdin=key_stdin, no_key=no_key)
    stored.require_addable(replace(there.definition, keys=keys))
    _require_tls(context, there.definition.base_url, keys)
    made = context.change(
        "provider.set_keys",
        there.id,
        _clear(there.definition, keys=len(keys)),
        {"url": _url_of(there.definition)},
        lambda session: stored.set_keys(session, name, keys, version=there.version),
    )
    if as_json:
        show_json(_told(_Configured(made.definition, made)))
        return
    click.echo(f"{name} has {len(keys) or 'no'} key{'' if len(keys) == 1 else 's'}, everywhere within 5 s.")


@providers.command("remove")
@_provider_argument
@yes_option
@pass_context
def remove_provider(context: CommandContext, name: str, *, yes: bool) -> None:
    """Remove the provider NAME from the database, with its keys. It is asked nothing more within 5 s."""
    stored, there = _find(context, name)
    confirm(f"Remove {name} ({as_cell(_url_of(there.definition))}) and its keys?", yes=yes)
    context.change(
        "provider.remove",
        there.id,
        _clear(there.definition),
        {"url": _url_of(there.definition)},
        lambda session: stored.remove(session, name, version=there.version),
    )
    click.echo(f"{name} is no longer a provider, everywhere within 5 s. Requests that run with it end undisturbed.")


@providers.command("egress")
@json_option
@pass_context
def egress(context: CommandContext, *, as_json: bool) -> None:
    """Print host:port of every place that the product may need to reach, for the firewall: providers, and what settings name.

    Those are the database, Redis, where error reports go, and the syslog of the audit log. It needs to reach nothing else
    outside but the resolver.
    """
    places: dict[OutsidePlace, _Place] = {}
    for each in _configured(context):
        endpoint = _endpoint(context, each.definition)
        place = places.setdefault(OutsidePlace(endpoint.host, endpoint.port), _Place())
        place.providers.append(each.definition.name)
        place.purposes.add("provider")
        place.sources.add(each.definition.source)
    for where, purpose in named_places(context.settings):
        place = places.setdefault(where, _Place())
        place.purposes.add(purpose)
        place.sources.add("environment")
    if as_json:
        show_json([{**asdict(where), **place.told()} for where, place in sorted(places.items())])
        return
    for line in sorted({str(where) for where in places}):
        click.echo(line)


def _configured(context: CommandContext) -> list[_Configured]:
    """Every provider, each name once, as the workers have it: the file's and the environment's before the database's."""
    found = {definition.name: _Configured(definition) for definition in _elsewhere(context)}
    for stored in context.database.run(context.stored_providers.list_providers):
        found.setdefault(stored.definition.name, _Configured(stored.definition, stored))
    return list(found.values())


def _elsewhere(context: CommandContext) -> Iterable[ProviderDefinition]:
    """Those that are configured outside the database."""
    upstream = context.settings.upstream
    in_file = models_file_of(upstream, production=context.settings.is_production)
    return configured_providers(upstream, in_file.providers)


def _find(context: CommandContext, name: str) -> tuple[StoredProviders, StoredProvider]:
    stored = context.stored_providers
    return stored, context.database.run(lambda session: stored.find(session, name))


def _usable(context: CommandContext, name: str) -> ProviderDefinition:
    """The definition with its keys. Raises `OperatorError` when there is none, or it is not asked for want of a key."""
    for each in _configured(context):
        if each.definition.name != name:
            continue
        if each.stored is None:
            return each.definition
        usable = {definition.name: definition for definition in context.stored_providers.definitions()}
        if name in usable:
            return usable[name]
        raise OperatorError(
            f"{name} is not asked: its key is {each.key_state}. Give it one with: manage.py providers set-key {name}"
        )
    raise OperatorError(f"There is no provider {name!r}; see: manage.py providers list")


def _require_free(context: CommandContext, name: str) -> None:
    for each in _configured(context):
        if each.definition.name == name:
            where = f"in the {each.definition.source}" if each.stored is None else f"as {each.stored.id}"
            raise StoredProviderExists(f"A provider {name} stands {where} already; choose another name.")


def _place(context: CommandContext, url: str) -> tuple[str, str]:
    """Base URL and query in the form in which they are kept. Raises `OperatorError`."""
    endpoint = parse_endpoint(url, read_own_hosts(context.settings.upstream.private_hosts), where="The URL")
    scheme = "https" if endpoint.secure else "http"
    return f"{scheme}://{endpoint.authority}{endpoint.base_path}", endpoint.query


def _endpoint(context: CommandContext, definition: ProviderDefinition) -> Endpoint:
    own_hosts = read_own_hosts(context.settings.upstream.private_hosts)
    return parse_endpoint(definition.base_url, own_hosts, where=f"The URL of provider {definition.name}")


def _require_tls(context: CommandContext, base_url: str, keys: tuple[SecretStr, ...]) -> None:
    parts = urlsplit(base_url)
    if context.settings.is_production and keys and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise OperatorError("The URL is http, and the key would cross the network in clear; use https.")


def _keys(*, key_stdin: bool, no_key: bool) -> tuple[SecretStr, ...]:
    if key_stdin and no_key:
        raise OperatorError("Either --key-stdin or --no-key.")
    if no_key:
        return ()
    if key_stdin:
        return tuple(SecretStr(line) for line in SecretInput().read_all("key"))
    return (SecretStr(click.prompt("Key", hide_input=True, err=True).strip()),)


def _formats(paths: tuple[str, ...]) -> dict[WireFormat, str] | None:
    known = {wire_format.value: wire_format for wire_format in WireFormat}
    formats = {}
    for given in paths:
        name, path = _pair(given, "--path")
        if name not in known:
            raise OperatorError(f"{name!r} is no wire format; there are {', '.join(known)}.")
        formats[known[name]] = path
    return formats or None


def _pair(given: str, option: str) -> tuple[str, str]:
    left, equals, right = given.partition("=")
    if not equals:
        raise OperatorError(f"{option} wants two sides with a = between them, not {given!r}.")
    return left, right


def _clear(definition: ProviderDefinition, **more: ClearValue) -> dict[str, ClearValue]:
    """What of a change stays readable in the log: neither place nor key."""
    return {"provider": definition.name, "kind": definition.kind, **more}


def _url_of(definition: ProviderDefinition) -> str:
    return definition.base_url + (f"?{definition.query}" if definition.query else "")


def _told(each: _Configured) -> dict[str, object]:
    definition, stored = each.definition, each.stored
    told: dict[str, object] = {
        "name": definition.name,
        "kind": definition.kind,
        "base_url": definition.base_url,
        "query": definition.query,
        "key": each.key_state,
        "models": list(definition.models),
        "tags": dict(definition.tags),
        "timeouts": asdict(definition.patience),
        "paths": None if definition.formats is None else {key.value: path for key, path in definition.formats.items()},
        "usage_in_streams": definition.usage_in_streams,
        "source": definition.source,
    }
    if stored is not None:
        told |= {
            "id": stored.id,
            "created_by": stored.created_by,
            "created_at": stored.created_at,
            "changed_at": stored.changed_at,
            "version": stored.version,
        }
    return told


def _timed(step: str, work: Callable[[], str]) -> dict[str, object]:
    began_s = time.monotonic()
    try:
        ok, what = True, work()
    except ProxyError as error:
        ok, what = False, f"{error.public} ({error.detail or error.code})"
    return {"step": step, "ok": ok, "ms": round((time.monotonic() - began_s) * 1000), "what": what}


def _list_models(reached: Providers, name: str, definition: ProviderDefinition) -> str:
    listed = reached.list_models(name, Cancellation())
    missing = [model for model in definition.models if model not in listed]
    told = f"{len(listed)} models"
    return told + (f"; not among them: {', '.join(missing)}" if missing else "")


def _ask(reached: Providers, name: str, model: str) -> str:
    payload: JsonObject = {"model": model, "messages": [{"role": "user", "content": _QUESTION}]}
    conversation = Conversation((Message(Role.USER, (Text(_QUESTION),)),))
    request = ChatRequest(model, stream=False, payload=payload, read=lambda _: conversation)
    completion = reached.complete(reached.write(Target(name, model), request), Cancellation())
    return _worded(completion)


def _worded(completion: Completion) -> str:
    usage = completion.usage
    tokens = f", {usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage.prompt_tokens is not None else ""
    return f"{as_cell(completion.text.strip()[:60]) or 'an empty answer'}{tokens}"
