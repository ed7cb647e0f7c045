"""What scripts/backup and scripts/restore ask of Python; nobody else does.

A set's digests are checked without importing what only its opening needs: the audit room and the settings.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ParamSpec

import click

from secure_llm_proxy.cli.host_backup.sets import LATEST, Check, Manifest, Signed, Store, check_stored
from secure_llm_proxy.cli.host_backup.signing import (
    NAMED,
    SIGNING_KEY,
    Trust,
    drawn_signing_key,
    named,
    public_text,
    signer_of,
    signers_in,
    signing_key_of,
)
from secure_llm_proxy.cli.output import show_json, show_table
from secure_llm_proxy.foundation.errors import OperatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from secure_llm_proxy.cli.host_backup.installed import Installed
    from secure_llm_proxy.cli.host_backup.making import Room
    from secure_llm_proxy.cli.host_backup.restoring import Restore

_PATH = click.Path(path_type=Path)
# A file that gets the last sentence, for the script's line in the system log.
_TOLD = "SLP_TOLD"

P = ParamSpec("P")


def _tell(sentence: str) -> None:
    if path := os.environ.get(_TOLD):
        Path(path).write_text(f"{sentence}\n", "utf-8")


def _told(command: Callable[P, None]) -> Callable[P, None]:
    """What the command fails with is told for the log, too."""

    @functools.wraps(command)
    def telling(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except OperatorError as error:
            _tell(str(error))
            raise

    return telling


def _options_of_restoring(command: Callable[P, None]) -> Callable[P, None]:
    for option in (
        click.option("--from", "directory", type=_PATH, required=True),
        click.option("--set", "wanted", default=LATEST),
        click.option("--identity", type=_PATH, required=True),
        click.option("--settings-directory", type=_PATH),
        click.option("--instance", type=_PATH),
        click.option("--env-file", type=_PATH),
        click.option("--with-settings", is_flag=True),
        click.option("--log", type=_PATH),
        click.option("--key-store", type=_PATH),
        click.option("--signer"),
        click.option("--unsigned", is_flag=True),
    ):
        command = option(command)
    return command


@click.group(name="host-backup", hidden=True)
def host_backup() -> None:
    """Sets of the encrypted backup. Called by scripts/backup."""


@host_backup.command()
@click.option("--settings", "settings_directory", type=_PATH)
@click.option("--instance", type=_PATH)
@click.option("--env-file", type=_PATH)
@click.option("--to", "directory", type=_PATH, required=True)
@click.option("--recipient", type=_PATH, required=True)
@click.option("--keep-days", type=click.IntRange(1, 3650), required=True)
@click.option("--dry-run", is_flag=True)
@click.option("--json", "as_json", is_flag=True)
@_told
def make(
    settings_directory: Path | None,
    instance: Path | None,
    env_file: Path | None,
    directory: Path,
    recipient: Path,
    keep_days: int,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a set, then remove those that are not kept any more."""
    from secure_llm_proxy.cli.host_backup.making import Run  # noqa: PLC0415  see the top

    store = Store(directory)
    if not dry_run:
        store.prepare()
    say = _say(quiet=as_json)
    installed = installed_in(settings_directory, instance, env_file)
    key = None if dry_run else _signing_key(installed, settings_directory)
    run = Run(installed, store, recipient, key, say)
    room = run.room()
    say(_told_of_room(room))
    if dry_run:
        _show(as_json, {"dry_run": True, "room": _room_values(room)}, "Nothing was written.")
        return
    manifest = run.make()
    gone = [] if manifest.altered else store.clear_out(keep_days, datetime.now(UTC))
    assert key is not None
    signer = public_text(key)
    told = {
        "set": manifest.stamp,
        "signer": signer,
        "room": _room_values(room),
        **_manifest_values(manifest),
        "removed": gone,
    }
    _show(
        as_json,
        told,
        f"The set {manifest.stamp} is made: {len(manifest.files)} files, {manifest.size} bytes, {room.new_segments} segments "
        f"new; {len(gone)} older sets removed, {len(store.stamps())} kept.",
    )
    if manifest.altered:
        raise OperatorError(
            f"Segments that never change differ from what an earlier set holds: {', '.join(manifest.altered)}. Both are kept "
            "and nothing is removed any more. Run `audit verify` on the log and on the earlier set: one of the two was altered. "
            "The alarm ends when the log holds the true segment and the manifests of the sets that tell of it (sets/*.json with "
            "`altered`) are moved away."
        )


@host_backup.command()
@click.option("--settings", "settings_directory", type=_PATH)
@click.option("--instance", type=_PATH)
@click.option("--json", "as_json", is_flag=True)
@_told
def signer(settings_directory: Path | None, instance: Path | None, *, as_json: bool) -> None:
    """Show who signs the sets that are made here: the line that belongs into the identity's file."""
    place = instance if instance is not None else settings_directory
    if place is None:
        raise click.UsageError("Say --settings or --instance.")
    signers = _signers_here(place)
    if not signers:
        raise OperatorError(f"{place / SIGNING_KEY} is not there. {_NO_KEY}")
    if as_json:
        show_json({"signer": signers[0]})
    else:
        click.echo(named(signers))


@host_backup.command()
@click.option("--to", "directory", type=_PATH, required=True)
@click.option("--set", "wanted", default=LATEST)
@click.option("--identity", type=_PATH)
@click.option("--owner")
@click.option("--signer")
@click.option("--unsigned", is_flag=True)
@click.option("--here", type=_PATH)
@click.option("--json", "as_json", is_flag=True)
def verify(
    directory: Path,
    wanted: str,
    identity: Path | None,
    owner: str | None,
    signer: str | None,
    here: Path | None,
    *,
    unsigned: bool,
    as_json: bool,
) -> None:
    """Check a set, or `all`. Exit 1 when something of it is not as it must be."""
    trust = _trust(signer, identity, here, unsigned=unsigned)
    store = Store(directory)
    stamps = store.stamps() if wanted == "all" and store.stamps() else [wanted]
    sets = [store.find(stamp) for stamp in stamps]
    told = []
    found: list[Check] = []
    for signed in sets:
        manifest = signed.manifest
        well, why = trust.judge(signed.origin)
        if signed.origin.signer is not None and not trust.signers:
            # Elsewhere, with nobody named: the signature is sound, and the operator can tell whose it is.
            well, why = True, f"by {signed.origin.signer}: is it the signer that you know?"
        checks = [Check("signature", well, why), *check_stored(store, manifest)]
        if identity is not None and all(check.well for check in checks):
            from secure_llm_proxy.cli.host_backup.checking import check_opened  # noqa: PLC0415  see the top

            with TemporaryDirectory(prefix="slp-verify-") as folder:
                checks += check_opened(
                    store, manifest, identity, Path(folder) / manifest.log_host, owner, _say(quiet=as_json)
                )
        found += checks
        told.append(
            {
                "set": manifest.stamp,
                "signer": signed.origin.signer,
                **_manifest_values(manifest),
                "checks": [asdict(check) for check in checks],
            }
        )
        if not as_json:
            click.echo(f"The set {manifest.stamp}:")
            show_checks(checks)
    if as_json:
        show_json(told)
    if not all(check.well for check in found):
        _tell("; ".join(check.found for check in found if not check.well))
        sys.exit(1)


@host_backup.command(name="restore-check")
@_options_of_restoring
@click.option("--owner-key", type=_PATH)
@click.option("--replace", is_flag=True)
@click.option("--dry-run", is_flag=True)
@click.option("--facts", type=_PATH)
@_told
def restore_check(
    directory: Path,
    wanted: str,
    identity: Path,
    settings_directory: Path | None,
    instance: Path | None,
    env_file: Path | None,
    log: Path | None,
    key_store: Path | None,
    owner_key: Path | None,
    facts: Path | None,
    signer: str | None,
    *,
    with_settings: bool,
    replace: bool,
    dry_run: bool,
    unsigned: bool,
) -> None:
    """Open, unpack and verify a set beside what is there. Fails when something is not well, or the place is in use."""
    trust = _trust(signer, identity, instance or settings_directory, unsigned=unsigned)
    signed = Store(directory).find(wanted)
    manifest = signed.manifest
    click.echo(_told_of_set(manifest, datetime.now(UTC)))
    if newer := [stamp for stamp in Store(directory).stamps() if stamp > manifest.stamp]:
        click.echo(
            f"WARNING: {len(newer)} newer sets lie in {directory}, the newest is {newer[-1]}. What was changed or revoked since "
            f"{manifest.stamp} will not be.",
        )
    restore = _restore(
        directory, signed, trust, identity, settings_directory, instance, env_file, with_settings, log, key_store
    )
    well = False
    try:
        checks = [
            Check("signature", *trust.judge(signed.origin)),
            *restore.check(owner_key.read_text("utf-8") if owner_key else None),
        ]
        show_checks(checks)
        well = all(check.well for check in checks)
        click.echo(
            "What is there now, and would be kept aside:" if dry_run else "What is there now, and is kept aside:"
        )
        rows = [(row.what, row.where, row.found) for row in restore.replaced()]
        show_table(("what", "where", "found"), rows, empty="Nothing.")
        used = restore.used()
        if not well:
            failed = "; ".join(f"{check.what}: {check.found}" for check in checks if not check.well)
            raise OperatorError(f"Nothing was restored. {failed}")
        if used and not replace:
            sentence = f"This place is in use: {'; '.join(used)}. With --replace all of it is kept aside."
            if not dry_run:
                well = False
                raise OperatorError(f"Nothing was restored. {sentence}")
            click.echo(sentence)
    finally:
        if dry_run or not well:
            restore.clear()
    if facts is not None:
        facts.write_text(f"set={manifest.stamp}\nowner={manifest.owner_public_key}\n", "utf-8")


@host_backup.command(name="restore-apply")
@_options_of_restoring
@_told
def restore_apply(
    directory: Path,
    wanted: str,
    identity: Path,
    settings_directory: Path | None,
    instance: Path | None,
    env_file: Path | None,
    log: Path | None,
    key_store: Path | None,
    signer: str | None,
    *,
    with_settings: bool,
    unsigned: bool,
) -> None:
    """Put what restore-check has unpacked in its place. Nobody may work on the data."""
    # Once more: the folder may be anybody's, and what was checked may have been exchanged.
    trust = _trust(signer, identity, instance or settings_directory, unsigned=unsigned)
    restore = _restore(
        directory,
        Store(directory).find(wanted),
        trust,
        identity,
        settings_directory,
        instance,
        env_file,
        with_settings,
        log,
        key_store,
    )
    for done in restore.apply():
        click.echo(f"ok\t{done.what}\t{done.found}")
        sys.stdout.flush()


def _restore(
    directory: Path,
    signed: Signed,
    trust: Trust,
    identity: Path,
    settings_directory: Path | None,
    instance: Path | None,
    env_file: Path | None,
    with_settings: bool,  # noqa: FBT001  as the option is
    log: Path | None,
    key_store: Path | None,
) -> Restore:
    from secure_llm_proxy.cli.host_backup.installed import files_below, installed_instance  # noqa: PLC0415  see the top
    from secure_llm_proxy.cli.host_backup.restoring import Newer, Restore, Target  # noqa: PLC0415  as above

    taken, why = trust.judge(signed.origin)
    if not taken:
        raise OperatorError(
            f"Nothing was restored. The set {signed.manifest.stamp} is not one that you trust: {why}. Whom you trust is named by the "
            f"line `{NAMED} KEY` in the identity's file, or by --signer KEY: the KEY that scripts/install showed beside the "
            "identity, never one that was found beside the set. --unsigned takes the set of whomever it is, with every account "
            "and secret in it."
        )
    if instance is not None:
        instance = instance.absolute()
        env_file = env_file or instance.parent / ".env"
        there = installed_instance(instance, env_file).settings
    elif settings_directory is not None:
        there = files_below(settings_directory)
    else:
        raise click.UsageError("Say --settings-directory or --instance.")
    target = Target(settings_directory, instance, env_file)
    say = _say(quiet=False)
    return Restore(
        Store(directory), signed.manifest, identity, target, there, say,
        with_settings=with_settings, newer=Newer(log, key_store),
    )  # fmt: skip


def installed_in(settings: Path | None, instance: Path | None, env_file: Path | None) -> Installed:
    from secure_llm_proxy.cli.host_backup.installed import installed_host, installed_instance  # noqa: PLC0415  see the top

    if instance is not None:
        return installed_instance(instance, env_file or instance.absolute().parent / ".env")
    if settings is None:
        raise click.UsageError("Say --settings or --instance.")
    return installed_host(settings)


_NO_KEY = "scripts/install makes it; a rotated one is made as docs/operations.md tells."


def _signing_key(installed: Installed, settings: Path | None) -> Ed25519PrivateKey:
    """Of an installed host: the one that scripts/install has made. An instance's is made with its first set."""
    if installed.instance is not None:
        return drawn_signing_key(installed.instance / SIGNING_KEY)
    content = installed.settings.get(SIGNING_KEY)
    if content is None:
        raise OperatorError(f"{settings}/{SIGNING_KEY} is missing, and no set is made unsigned. {_NO_KEY}")
    return signing_key_of(content, SIGNING_KEY)


def _signers_here(place: Path) -> tuple[str, ...]:
    """Who signs the sets of the host, or instance, whose settings' folder this is: nobody where there is no key to be read."""
    path = place / SIGNING_KEY
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ()
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}.") from None
    return (public_text(signing_key_of(content, path)),)


def _trust(named_one: str | None, identity: Path | None, place: Path | None, *, unsigned: bool) -> Trust:
    """The one that was named on the command line; else whom the identity's file names, and this host itself."""
    if named_one is not None:
        return Trust((signer_of(named_one),), unsigned)
    signers = [*(signers_in(identity) if identity else ()), *(_signers_here(place) if place else ())]
    return Trust(tuple(dict.fromkeys(signers)), unsigned)


def _told_of_set(manifest: Manifest, now: datetime) -> str:
    age_h = (now - manifest.made_at).total_seconds() / 3600
    ago = f"{age_h / 24:,.0f} days" if age_h >= 48 else f"{age_h:,.1f} hours"  # noqa: PLR2004  two days
    return (
        f"The set {manifest.stamp} of {manifest.log}, made {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC ({ago} ago) by release "
        f"{manifest.release}:"
    )


def show_checks(checks: Sequence[Check]) -> None:
    rows = [("ok" if check.well else "FAILED", check.what, check.found) for check in checks]
    show_table(("", "what", "found"), rows, empty="Nothing was looked at.")


def _manifest_values(manifest: Manifest) -> dict[str, object]:
    return {
        "release": manifest.release,
        "log": manifest.log,
        "owner_public_key": manifest.owner_public_key,
        "database": manifest.database_kind,
        "files": len(manifest.files),
        "bytes": manifest.size,
        "segments": len(manifest.segments),
        "altered": list(manifest.altered),
    }


def _room_values(room: Room) -> dict[str, int]:
    return {
        "database": room.database,
        "segments": room.segments,
        "keys": room.keys,
        "needed": room.needed,
        "free": room.free,
        "new_segments": room.new_segments,
    }


def _told_of_room(room: Room) -> str:
    return (
        f"about {room.needed / (1 << 20):,.1f} MiB will be written (database {room.database / (1 << 20):,.1f}, "
        f"segments {room.segments / (1 << 20):,.1f} with {room.new_segments} new ones); "
        f"{room.free / (1 << 20):,.0f} MiB are free"
    )


def _say(*, quiet: bool) -> Callable[[str], None]:
    def say(sentence: str) -> None:
        if not quiet:
            click.echo(sentence, err=True)

    return say


def _show(as_json: bool, values: dict[str, object], sentence: str) -> None:  # noqa: FBT001  as the option is
    if as_json:
        show_json(values)
    else:
        click.echo(sentence)
    _tell(sentence)
