"""`manage.py audit erase` and `audit rotate-keys`: what happens to the keys of the log, by way of the writer that runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import click
import orjson

from secure_llm_proxy.audit import (
    KeyRing,
    WriterControl,
    erased_keys_in,
    find_host_id,
    read_genesis,
    running_writer,
    segments_of,
    system_keys_in,
)
from secure_llm_proxy.cli.context import CommandContext, pass_context
from secure_llm_proxy.cli.output import as_cell, confirm, json_option, show_json, show_table, yes_option
from secure_llm_proxy.cli.progress import Progress
from secure_llm_proxy.cli.whole_file import whole_file
from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.identity import login_person

_USER_ID = re.compile(r"usr_[0-9A-HJKMNP-TV-Z]{26}")
_SYSTEM_KEYS_AT_ONCE = 500


class _Person(NamedTuple):
    """Pseudonyms of one person, and what to call them on the terminal; never written down."""

    name: str
    subjects: tuple[str, ...]


class _Held(NamedTuple):
    subject: str
    kids: list[str]
    erased: list[dict[str, object]]


@click.command()
@click.option("--user", metavar="NAME|usr_ID", help="A user of ours: by name, or by id also when the user is deleted.")
@click.option("--person", metavar="EXTERNAL-ID", help="Somebody whom an application names (X-User-ID, `user`).")
@click.option(
    "--recorded",
    is_flag=True,
    help="Everybody whom the log says was erased: after the key store was restored from a backup.",
)
@click.option("--dry-run", is_flag=True, help="Only tell which keys would be destroyed.")
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    help="Where the certificate goes. Default: erased-<pseudonym>-<time>.json here.",
)
@yes_option
@json_option
@pass_context
def erase(
    context: CommandContext,
    user: str | None,
    person: str | None,
    certificate: Path | None,
    *,
    recorded: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Destroy a person's keys on this host, for good: nothing that the log holds of them can be read any more.

    The log stays whole and verifies; what is readable in it (times, counts, pseudonyms) stays. Run it on every host. Once more
    for the same person finishes what an earlier run could not, and writes the certificate again.
    """
    if recorded:
        if user is not None or person is not None or certificate is not None:
            raise click.UsageError("--recorded goes with neither --user, --person nor --certificate.")
        _erase_recorded(context, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    who = _person(context, user, person)
    with _control(context) as control:
        held = [_held(control, subject) for subject in who.subjects]
        if dry_run:
            _show_held(held, as_json=as_json)
            return
        if not any(each.kids or each.erased for each in held):
            click.echo("No key of this person is on this host: there is nothing to erase.")
            return
        count = sum(len(each.kids) for each in held)
        confirm(
            f"Destroy {count} keys of {as_cell(who.name)}? What they sealed can then never be read again. Go on?",
            yes=yes,
        )
        _erase(context, control, who, certificate, as_json=as_json)


def _erase(
    context: CommandContext, control: WriterControl, who: _Person, certificate: Path | None, *, as_json: bool
) -> None:
    now = context.clock.now()
    path = certificate or Path(f"erased-{who.subjects[0]}-{now:%Y%m%dT%H%M%SZ}.json")
    settings = context.audit_settings
    genesis = read_genesis(settings.directory / find_host_id(settings))
    # Known to be writable before anything is destroyed.
    with whole_file(path) as stream:
        answers = [
            context.recorded("audit.erase", subject, {}, {}, partial(control.ask, "erase", subject=subject))
            for subject in who.subjects
        ]
        troubles = [str(answer["trouble"]) for answer in answers if answer["trouble"]]
        if troubles:
            raise OperatorError(" ".join(dict.fromkeys(troubles)))
        told = {
            "v": 1,
            "what": "The keys named here were destroyed on this host; bodies of audit records that they sealed can't be read.",
            "log": genesis.log,
            "owner_public_key": genesis.owner_public_key,
            "t": rfc3339(now),
            "erased": [
                {"subject": subject, "keys": [_on_certificate(each) for each in _erased_in(answer)]}
                for subject, answer in zip(who.subjects, answers, strict=True)
            ],
            # Covers the records that say so: `n` is the index of each in the log.
            "checkpoint": answers[-1]["note"],
        }
        stream.write(orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n")
    destroyed = sum(len(cast("list[str]", answer["kids"])) for answer in answers)
    if as_json:
        show_json({**told, "destroyed_now": destroyed, "certificate": str(path)})
        return
    click.echo(f"{destroyed} keys are destroyed, and the log says so. The certificate: {as_cell(path)}")


def _erase_recorded(context: CommandContext, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    with _control(context) as control:
        kids = erased_keys_in(segments_of(context.audit_settings))
        back = cast("list[str]", control.ask("erase-recorded", kids=kids, dry_run=True)["kids"])
        if dry_run or not back:
            told = f"Of {len(kids)} keys that the log says were erased, {len(back)} are here."
            show_json({"erased": len(kids), "back": back}) if as_json else click.echo(told)
            return
        confirm(f"Destroy {len(back)} keys that the log says were erased before. Go on?", yes=yes)
        answer = context.recorded(
            "audit.erase", "recorded", {"keys": len(back)}, {}, partial(control.ask, "erase-recorded", kids=kids)
        )
    if answer["trouble"]:
        raise OperatorError(str(answer["trouble"]))
    show_json({"erased": len(kids), "back": back}) if as_json else click.echo(f"{len(back)} keys are destroyed again.")


def _person(context: CommandContext, user: str | None, person: str | None) -> _Person:
    if (user is None) == (person is None):
        raise click.UsageError("Name one of --user, --person and --recorded.")
    # One pseudonym for each SECRET_KEY that there was: what the oldest sealed must be erased as well.
    keys = context.person_keys
    if person is not None:
        return _Person(person, tuple(pseudonym(key, person) for key in keys))
    assert user is not None
    try:
        found = context.database.run(lambda session: context.accounts.find_user(session, user))
    except OperatorError:
        if not _USER_ID.fullmatch(user):
            raise
        # Deleted: what was typed as a name at logins is not known any more.
        return _Person(user, tuple(pseudonym(key, user) for key in keys))
    # The second seals what was refused before anybody knew who it was.
    names = (found.id, login_person(found.username))
    return _Person(found.username, tuple(pseudonym(key, name) for key in keys for name in names))


@contextlib.contextmanager
def _control(context: CommandContext) -> Iterator[WriterControl]:
    settings = context.audit_settings
    with running_writer(settings), contextlib.closing(WriterControl(settings.control_address)) as control:
        yield control


def _held(control: WriterControl, subject: str) -> _Held:
    answer = control.ask("keys", subject=subject)
    return _Held(subject, cast("list[str]", answer["kids"]), _erased_in(answer))


def _erased_in(answer: Mapping[str, object]) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", answer["erased"])


def _on_certificate(key: Mapping[str, object]) -> dict[str, object]:
    return {"kid": key["kid"], "erased_at": key["erased_at"], "n": key["n"]}


def _show_held(held: Sequence[_Held], *, as_json: bool) -> None:
    if as_json:
        show_json([{"subject": each.subject, "keys": each.kids, "erased": each.erased} for each in held])
        return
    rows = [[each.subject, len(each.kids), len(each.erased)] for each in held]
    show_table(["subject", "keys here", "erased before"], rows, empty="No key of this person is on this host.")


# --- another key-encryption key ---------------------------------------------------------------------------------------


@click.command("rotate-keys")
@click.option("--dry-run", is_flag=True, help="Only count what is wrapped by which key-encryption key.")
@json_option
@pass_context
def rotate_keys(context: CommandContext, *, dry_run: bool, as_json: bool) -> None:
    """Wrap every key by AUDIT_KEK, so that those in AUDIT_KEK_PREVIOUS can go. The log itself is not touched.

    The writer must run with the new AUDIT_KEK, and the old one in AUDIT_KEK_PREVIOUS. Done in chunks: when it was interrupted,
    run it again.
    """
    started = context.clock.now()
    with _control(context) as control:
        current, counts, kept = _keks(context, control)
        settings = context.audit_settings
        wanted = [
            {"kid": key.kid, "wk": key.wrapped, "kc": key.commitment}
            for key in system_keys_in(segments_of(settings))
            if key.kek != current and key.kid not in kept
        ]
        old = {table: sum(number for kek, number in by.items() if kek != current) for table, by in counts.items()} | {
            "system keys in the log": len(wanted)
        }
        if dry_run:
            _show_counts(current, counts, old, as_json=as_json)
            return
        done = context.recorded(
            "audit.rotate_keys",
            current,
            {"keys": sum(old.values())},
            {},
            lambda: _rewrap(control, wanted, sum(old.values())),
        )
    took = context.clock.now() - started
    if as_json:
        show_json({"kek": current, "rewrapped": done})
        return
    click.echo(
        f"{done} keys are wrapped anew by the key-encryption key {current} ({took / timedelta(seconds=1):.1f} s). "
        "AUDIT_KEK_PREVIOUS is needed no more: take it out of the audit writer's environment, and keep it for restores of "
        "backups made before now."
    )


def _keks(context: CommandContext, control: WriterControl) -> tuple[str, dict[str, dict[str, int]], set[str]]:
    answer = control.ask("keks")
    current = str(answer["current"])
    ours = KeyRing.of(context.audit_settings)
    if ours is not None and ours.current.id != current:
        raise OperatorError(
            f"The audit writer wraps keys by the key-encryption key {current}, and AUDIT_KEK here is {ours.current.id}. "
            "Restart the writer with the new AUDIT_KEK, and the old one in AUDIT_KEK_PREVIOUS."
        )
    return current, cast("dict[str, dict[str, int]]", answer["counts"]), set(cast("list[str]", answer["system_keys"]))


def _rewrap(control: WriterControl, wanted: Sequence[Mapping[str, str]], total: int) -> int:
    done = 0
    with Progress("wrapping keys", total, unit="keys") as progress:
        for first in range(0, len(wanted), _SYSTEM_KEYS_AT_ONCE):
            some = wanted[first : first + _SYSTEM_KEYS_AT_ONCE]
            control.ask("keep-system-keys", keys=some)
            done += len(some)
            progress.at(done, done)
        left = True
        while left:
            turn = control.ask("rewrap")
            done += cast("int", turn["done"])
            left = bool(turn["left"])
            progress.at(done, done)
        control.ask("compact")
    return done


def _show_counts(
    current: str, counts: Mapping[str, Mapping[str, int]], old: Mapping[str, int], *, as_json: bool
) -> None:
    if as_json:
        show_json({"kek": current, "counts": counts, "to_wrap": old})
        return
    click.echo(f"The writer's key-encryption key: {current}")
    rows = [[table, kek, number] for table, by in counts.items() for kek, number in sorted(by.items())]
    show_table(["keys", "wrapped by", "how many"], rows, empty="The key store holds no key yet.")
    click.echo("To be wrapped anew: " + ", ".join(f"{number} {what}" for what, number in old.items()) + ".")
