"""`manage.py audit search`: which records fit a question about their readable members."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar, Unpack

import click

from secure_llm_proxy.admission import parse_address
from secure_llm_proxy.audit import (
    AuditReader,
    ClearRow,
    GenesisBroken,
    Selection,
    flat_members,
    host_directory,
    newest_records,
    read_genesis,
    rows_of,
    segments_of,
    select,
    size_of,
)
from secure_llm_proxy.audit.blind_indexes import BlindIndexes
from secure_llm_proxy.audit.index_search import IndexDiffers, indexed_lines, indexed_places, is_indexable, lines_at
from secure_llm_proxy.audit.keystore import KeyStore, KeyStoreUnavailable
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.audit.segments import SegmentFile
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.moments import MOMENT, check_order
from secure_llm_proxy.cli.output import as_cell, json_option, show_json, show_table, warn
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.vocabulary.audit import indexed_values

Command = TypeVar("Command", bound=Callable[..., Any])

_LIMIT_MAX = 100_000
_USER_ID = re.compile(r"usr_[0-9A-Z]{26}")
_PROJECT_ID = re.compile(r"prj_[0-9A-Z]{26}")
_PSEUDONYM = re.compile(r"s_[0-9a-f]{16}")


class Question(TypedDict):
    """What the options of `record_options` give."""

    since: str | None
    until: str | None
    user: str | None
    person: str | None
    project: str | None
    key: str | None
    model: str | None
    event: str | None
    record_type: str | None
    decision: str | None
    status: str | None
    address: str | None
    agent: str | None
    email: str | None
    request: str | None


def record_options(command: Command) -> Command:
    """The options that say which records are meant; what is not given fits all."""
    options = (
        click.option("--since", type=MOMENT, help="From this time on: 2026-11-21, 2026-11-21T14:05Z, 24h (ago)."),
        click.option("--until", type=MOMENT, help="Before this time."),
        click.option("--user", help="What a user (name or usr_… id) did, or what was done to it."),
        click.option("--person", help="Whom the application named (X-User-ID), or the pseudonym s_… of that."),
        click.option("--project", help="Requests with keys of this project (name or prj_… id), and changes of it."),
        click.option("--key", help="What an API key (public part or key_… id) was used for, and changes of it."),
        click.option("--model", help="Requests to this model."),
        click.option("--event", help="Event name, e.g. AUTHENTICATION_FAILED."),
        click.option("--type", "record_type", help="Type of record, e.g. llm.start."),
        click.option("--decision", help="allow or refuse."),
        click.option("--status", help="HTTP status, end of an exchange (complete, client_abort, …) or error code."),
        click.option(
            "--address", help="Requests and logins from this IP address; needs AUDIT_KEK or the running writer."
        ),
        click.option("--agent", help="Requests and logins with this User-Agent, word for word."),
        click.option("--email", help="Logins and changes that concern this e-mail address."),
        click.option("--request", help="Id of an exchange or of one of its records: all that belongs to it."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def filter_of(context: CommandContext, question: Question) -> Selection:
    """Names become identifiers, for which the database is asked; identifiers need none. Raises `OperatorError`."""
    check_order(question["since"], question["until"])
    for name, value in question.items():
        if isinstance(value, str) and not value.isprintable():
            # Bytes that are no UTF-8 come as lone surrogates, which are not printable either.
            raise click.UsageError(f"The value of --{name.removeprefix('record_')} is not readable text.")
    persons = _pseudonyms(context, question["person"])
    return Selection(
        since=question["since"],
        until=question["until"],
        user=_user_id(context, question["user"]),
        person=next(iter(persons), None),
        also=persons[1:],
        project=_project_id(context, question["project"]),
        key=_kid(context, question["key"]),
        model=question["model"],
        event=question["event"],
        type=question["record_type"],
        decision=question["decision"],
        status=question["status"],
        request=question["request"],
        **_blind_indexes(context, question["address"], question["agent"], question["email"]),
    )


def _user_id(context: CommandContext, user: str | None) -> str | None:
    if user is None or _USER_ID.fullmatch(user):
        return user
    return context.database.run(lambda session: context.accounts.find_user(session, user)).id


def _project_id(context: CommandContext, project: str | None) -> str | None:
    if project is None or _PROJECT_ID.fullmatch(project):
        return project
    return context.database.run(lambda session: context.organisations.find_project(session, project)).id


def _kid(context: CommandContext, key: str | None) -> str | None:
    if key is None or not key.startswith(("key_", "slp_")):
        return key
    return context.database.run(lambda session: context.keys.find_api_key(session, key)).kid


def _pseudonyms(context: CommandContext, person: str | None) -> tuple[str, ...]:
    """The present one, then those of secrets that were in force before."""
    if person is None:
        return ()
    if _PSEUDONYM.fullmatch(person):
        return (person,)
    try:
        keys = context.person_keys
    except (OperatorError, ProxyError) as error:
        warn(f"records of before the last change of SECRET_KEY are not looked for: {error}")
        keys = (context.person_key,)
    return tuple(pseudonym(key, person) for key in keys)


class _Blind(TypedDict, total=False):
    address: str
    agent: str
    email: str


def _blind_indexes(context: CommandContext, address: str | None, agent: str | None, email: str | None) -> _Blind:
    """What stands readable in records for these values. Whoever holds AUDIT_KEK works it out, others ask the audit writer."""
    if address is None and agent is None and email is None:
        return {}
    if address is not None:
        parsed = parse_address(address.strip())
        if parsed is None:
            raise click.UsageError(f"{as_cell(address[:64])} is no IP address.")
        address = parsed.text
    values = indexed_values(address=address, agent=agent, email=email)
    index_of = _index_maker(context)
    blind: _Blind = {}
    if "ipx" in values:
        blind["address"] = index_of("ipx", values["ipx"])
    if "uax" in values:
        blind["agent"] = index_of("uax", values["uax"])
    if "emx" in values:
        blind["email"] = index_of("emx", values["emx"])
    return blind


def _index_maker(context: CommandContext) -> Callable[[str, str], str]:
    settings = context.audit_settings
    ring = KeyRing.of(settings)
    if ring is None:
        # Raises `Unavailable` with a sentence when no writer runs, or this user may not ask it.
        return AuditReader(settings).blind
    store = KeyStore.open_to_read(settings.keys_directory, ring)
    if store is None:
        raise OperatorError(f"{settings.keys_directory} holds no key store, so no record can be found by these.")
    try:
        return BlindIndexes(store.index_key()).of
    except KeyStoreUnavailable as error:
        raise OperatorError(str(error)) from None
    finally:
        store.close()


@click.command()
@record_options
@click.option(
    "--limit", type=click.IntRange(1, _LIMIT_MAX), default=100, show_default=True, help="How many, the newest."
)
@click.option("--scan", is_flag=True, help="Read the segments themselves, and do not ask the index in the database.")
@json_option
@pass_context
def search(context: CommandContext, limit: int, *, scan: bool, as_json: bool, **question: Unpack[Question]) -> None:
    """Find records by their readable members, newest last; bodies stay sealed. All that is asked must fit.

    The index in the database says where to look; what is shown is read from the segments, and compared. Without an index, and
    for what it has not come to yet, the segments are read.
    """
    wanted = filter_of(context, question)
    found = _found(context, wanted, limit, scan=scan)
    if as_json:
        show_json([flat_members(row) for row in found])
        return
    show_table(
        ("time", "type", "event", "what", "who", "where", "record", "request"),
        [_cells(row) for row in found],
        empty="No record fits.",
    )


def _found(context: CommandContext, wanted: Selection, limit: int, *, scan: bool) -> list[ClearRow]:
    segments = segments_of(context.settings.audit)
    indexed = 0 if scan or not is_indexable(wanted) else _indexed_lines(context)
    if indexed:
        try:
            return _found_by_index(context, segments, wanted, limit, indexed)
        except IndexDiffers:
            warn(
                "the index in the database is not what the log says; the segments were read instead. Run audit verify."
            )
    return _found_in_segments(segments, wanted, limit)


def _indexed_lines(context: CommandContext) -> int:
    """How many lines the index knows; 0 as well when there is no database to ask."""
    try:
        return context.database.run(lambda session: indexed_lines(session, _log_of(context)))
    except (OperatorError, ProxyError):
        return 0


def _log_of(context: CommandContext) -> str:
    settings = context.settings.audit
    try:
        return read_genesis(host_directory(settings.directory, settings.host_id)).log
    except (GenesisBroken, OSError) as error:
        raise OperatorError(f"The log has no valid root of trust: {error}. Run `audit verify`.") from None


def _found_by_index(
    context: CommandContext, segments: Sequence[SegmentFile], wanted: Selection, limit: int, indexed: int
) -> list[ClearRow]:
    newest = _found_in_segments(segments, wanted, limit, begin=indexed)
    rest = limit - len(newest)
    if not rest:
        return newest
    log = _log_of(context)
    places = context.database.run(lambda session: indexed_places(session, log, wanted, below=indexed, limit=rest))
    older = list(rows_of(select(lines_at(segments, places), wanted)))
    return older + newest


def _found_in_segments(
    segments: Sequence[SegmentFile], wanted: Selection, limit: int, *, begin: int = 0
) -> list[ClearRow]:
    with Progress("searching", size_of(segments)) as progress:
        return newest_records(segments, wanted, limit, begin=begin, watch=progress.over)


def _cells(row: ClearRow) -> tuple[object, ...]:
    clear = row.clear
    return (
        row.t,
        row.type,
        row.event,
        clear.get("code") or clear.get("act") or clear.get("st") or clear.get("dec"),
        clear.get("by") or clear.get("usr") or clear.get("ak"),
        clear.get("subject") or clear.get("target") or clear.get("mdl") or clear.get("rt"),
        row.id,
        row.exchange_id,
    )
