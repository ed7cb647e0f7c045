"""`manage.py models`: what is on offer, and which way a request for it goes now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Self

import click

from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import json_option, show_json, show_table, warn
from secure_llm_proxy.cli.status import fetch_health
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.errors import NotFound, OperatorError, ProxyError
from secure_llm_proxy.routing import ModelDefinition, Routing, Verdict, Wish, configured_providers, models_file_of
from secure_llm_proxy.routing.circuits import CircuitKey
from secure_llm_proxy.routing.models import Strategy
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.chat import ChatRequest, Target
from secure_llm_proxy.vocabulary.inbound import Tags
from secure_llm_proxy.vocabulary.providers import Capability, ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

_OK = 200
_STANDS_BY = {
    Strategy.ORDERED: "next",
    Strategy.WEIGHTED: "by weight",
    Strategy.LEAST_BUSY: "by running requests",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """One target of a model. `role` tells whose turn it is: the model's own route, or which fallback; `state` says how it
    stands now, and `why`.
    """

    role: str
    served_as: str
    provider: str
    model: str
    weight: int
    state: str
    why: str | None = None


@click.group()
def models() -> None:
    """Models: which are on offer, and which way a request goes."""


@models.command("list")
@json_option
@pass_context
def list_models(context: CommandContext, *, as_json: bool) -> None:
    """List every model on offer with its routes. Providers whose own list is on offer are asked for it."""
    with _Rooms(context) as rooms:
        names = rooms.routing.listed()
        _warn_untold(rooms.routing)
        offered = list({id(model): model for name in names if (model := rooms.routing.model(name))}.values())
        if as_json:
            show_json([_told(model, rooms.routing) for model in offered])
            return
        show_table(
            ("model", "also", "strategy", "routes", "fallbacks", "context"),
            [
                (
                    model.name,
                    model.aliases or None,
                    model.strategy,
                    tuple(f"{route.provider}/{route.model}" for route in model.routes),
                    model.fallbacks or None,
                    model.context_tokens,
                )
                for model in offered
            ],
            empty="No model is on offer; name some with LLM_MODELS or in MODELS_FILE.",
        )


@models.command()
@click.argument("model")
@click.option(
    "--tag", "tags", multiple=True, metavar="NAME=VALUE", help="As a client asks by X-SLP-Require. Repeat it."
)
@click.option(
    "--needs",
    multiple=True,
    type=click.Choice([each.value for each in Capability]),
    help="What the request needs. Repeat it.",
)
@click.option(
    "--format",
    "wire_format",
    type=click.Choice([each.value for each in WireFormat]),
    default=WireFormat.OPENAI_CHAT.value,
    show_default=True,
    help="The format that the client speaks.",
)
@json_option
@pass_context
def explain(
    context: CommandContext,
    model: str,
    tags: tuple[str, ...],
    needs: tuple[str, ...],
    wire_format: str,
    *,
    as_json: bool,
) -> None:
    """Tell which way a request for MODEL goes now, and why each other is passed over. Exit 1 when it would be refused."""
    wish = Wish(WireFormat(wire_format), frozenset(needs), _tags(tags))
    with _Rooms(context) as rooms:
        definition = _find(rooms.routing, model)
        known = rooms.take_circuits_of_server()
        refusal = _refusal(rooms.routing, model, wish)
        places = list(_places(rooms.routing, definition, wish))
    if as_json:
        show_json(
            {
                "model": definition.name,
                "strategy": definition.strategy,
                "circuits_known": known,
                "refused": None if refusal is None else {"code": refusal.code, "message": refusal.public},
                "places": [
                    {
                        "role": place.role,
                        "served_as": place.served_as,
                        "provider": place.provider,
                        "model": place.model,
                        "weight": place.weight,
                        "state": place.state,
                        "why": place.why,
                    }
                    for place in places
                ],
            }
        )
    else:
        if not known:
            warn("the server could not be asked what it leaves alone (circuits); every provider counts as good.")
        show_table(
            ("role", "provider", "model", "state", "why"),
            [(place.role, place.provider, place.model, place.state, place.why) for place in places],
            empty="",
        )
    if refusal is not None:
        raise OperatorError(f"A request like this is refused: {refusal.public} ({refusal.code})")


class _Rooms:
    """Routing as the workers have it, with providers to ask for their lists; a context manager."""

    def __init__(self, context: CommandContext) -> None:
        self._context = context
        settings = context.settings
        in_file = models_file_of(settings.upstream, production=settings.is_production)
        providers = configured_providers(settings.upstream, in_file.providers, _stored(context))
        if not providers:
            raise OperatorError("No provider is configured, the demo model answers; docs/providers.md tells how.")
        self._upstream = Providers(settings.upstream, providers)
        self.routing = Routing(
            settings.upstream, lambda name: self._upstream.list_models(name, Cancellation()), SystemClock()
        )
        self.routing.configure(providers, in_file.models)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._upstream.close()

    def take_circuits_of_server(self) -> bool:
        """Leave alone what a worker of the running server leaves alone; False when none could be asked."""
        try:
            status, told = fetch_health(self._context.settings, "/security/status")
        except OSError:
            return False
        if status != _OK:
            return False
        listed: Any = told.get("providers")
        for provider in listed or ():
            for circuit in provider["circuits"]:
                # One whose time is over is tried by the next request: as good as closed.
                if circuit["opens_in_s"] > 0:
                    key = CircuitKey(provider["name"], circuit["model"])
                    self.routing.circuits.opened_elsewhere(key, circuit["opens_in_s"])
        return True


def _stored(context: CommandContext) -> tuple[ProviderDefinition, ...]:
    try:
        return context.stored_providers.definitions()
    except (OperatorError, ProxyError) as error:
        warn(f"providers in the database are not considered ({error}).")
        return ()


def _find(routing: Routing, name: str) -> ModelDefinition:
    try:
        return routing.model(name)
    except NotFound:
        near = get_close_matches(name, routing.listed(), n=1)
        raise OperatorError(
            f"There is no model {name!r} on offer."
            + (f" Did you mean {near[0]}?" if near else " See: manage.py models list")
        ) from None


def _refusal(routing: Routing, name: str, wish: Wish) -> ProxyError | None:
    try:
        routing.plan(ChatRequest(name, stream=False, payload={}, format=wish.format, needs=wish.needs), wish.tags)
    except ProxyError as error:
        return error
    return None


def _places(routing: Routing, model: ModelDefinition, wish: Wish) -> Iterator[_Place]:
    turn = "first"
    for verdict in routing.verdicts(model, wish):
        place = _place(routing, "route", model, verdict)
        if place.state == "ready":
            state = turn if model.strategy is Strategy.ORDERED or len(model.routes) == 1 else _STANDS_BY[model.strategy]
            turn = "next"
            place = _Place(place.role, place.served_as, place.provider, place.model, place.weight, state)
        yield place
    for role, names in (
        ("fallback", model.fallbacks),
        ("context fallback", model.context_fallbacks),
        ("content policy fallback", model.content_policy_fallbacks),
    ):
        for name in names:
            fallback = routing.model(name)
            for verdict in routing.verdicts(fallback, wish, instead_of=model):
                yield _place(routing, role, fallback, verdict)


def _place(routing: Routing, role: str, model: ModelDefinition, verdict: Verdict) -> _Place:
    route = verdict.route
    state, why = "ready", None
    if verdict.hurdle is not None:
        state, why = "passed over", verdict.why
    elif routing.circuits.is_open(target := Target(route.provider, route.model)):
        state, why = "left alone", f"it kept failing; tried again in {routing.circuits.opens_s(target):.0f} s"
    return _Place(role, model.name, route.provider, route.model, route.weight, state, why)


def _tags(given: tuple[str, ...]) -> Tags:
    tags = []
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise click.BadParameter(f"{pair!r} is not NAME=VALUE, like region=eu.", param_hint="--tag")
        tags.append((name, value))
    return tuple(tags)


def _warn_untold(routing: Routing) -> None:
    if untold := routing.untold():
        warn(f"these providers did not tell their models: {', '.join(untold)}. See: manage.py doctor")


def _told(model: ModelDefinition, routing: Routing) -> dict[str, object]:
    return {
        "name": model.name,
        "also": list(routing.names_of(model)[1:]),
        "strategy": model.strategy,
        "routes": [{"provider": each.provider, "model": each.model, "weight": each.weight} for each in model.routes],
        "fallbacks": list(model.fallbacks),
        "context_fallbacks": list(model.context_fallbacks),
        "content_policy_fallbacks": list(model.content_policy_fallbacks),
        "capabilities": None if model.capabilities is None else sorted(model.capabilities),
        "context_tokens": model.context_tokens,
        "max_output_tokens": model.max_output_tokens,
        "require": {name: sorted(values) for name, values in model.require.items()},
        "forbid": {name: sorted(values) for name, values in model.forbid.items()},
    }
