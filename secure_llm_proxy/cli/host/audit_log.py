"""Is the audit log whole? Verified as `manage.py audit verify` does, with the checkpoints that were kept; of a large log only what
is new since the last time.

Then the segments that were verified before are held to what their files looked like: size, inode, and the time of the last
change (ctime), which cannot be set. One that differs has the whole log verified again, and so has a week without that.
"""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_llm_proxy.audit import Outcome, Severity, VerificationReport, VerifiedUpTo, find_log, read_anchors, verify
from secure_llm_proxy.audit.retirement import read_retired
from secure_llm_proxy.audit.segments import LogDirectories
from secure_llm_proxy.cli.host.check import Check, Level, failed, unknown
from secure_llm_proxy.foundation.errors import OperatorError

_WHOLE_EVERY_S = 7 * 86_400
_GIB = 1 << 30
_FINDINGS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class AuditPlaces:
    """`anchors`: files with checkpoints that were kept; those that are not there are left out."""

    directory: Path
    host_id: str = ""
    also: Path | None = None
    anchors: tuple[Path, ...] = ()
    owner_public_key: str | None = None


def audit_check(
    places: AuditPlaces, memory: Mapping[str, Any] | None, *, whole_up_to_gib: float, whole: bool = False
) -> tuple[Check, dict[str, Any] | None]:
    """The finding, and what to remember for the next time (None: what was remembered before).

    A log above `whole_up_to_gib` is read from where the last verification ended, unless `whole` is asked for.
    """
    what = "audit log"
    started = time.monotonic()
    try:
        log = find_log(places.directory, places.host_id, places.also)
        files = _looks(log)
        behind = None if whole else _place_to_go_on(memory, files, log, whole_up_to_gib)
        report = verify(
            places.directory,
            genesis_public_key=places.owner_public_key or _known_owner(memory),
            host_id=places.host_id,
            anchors=_anchors(places),
            also=places.also,
            behind=behind,
        )
    except PermissionError as error:
        return unknown(what, f"{error.filename} may not be read by this user", "run this as root"), None
    except OSError as error:
        return failed(what, f"{error.filename}: {error.strerror}", "manage.py audit verify"), None
    except OperatorError as error:
        return failed(what, str(error), "manage.py audit init, or correct AUDIT_DIR"), None
    seconds = time.monotonic() - started
    kept = _to_remember(report, files, memory, was_whole=behind is None)
    return _told(what, report, seconds, behind), kept


def _told(what: str, report: VerificationReport, seconds: float, behind: VerifiedUpTo | None) -> Check:
    read = f"{report.lines} lines" + (f" behind segment {behind.number}" if behind else ", all of it,")
    told = f"{report.outcome.value}: {read} in {seconds:.1f} s, {report.anchors_met} anchors met"
    worst = [str(found) for found in report.findings if found.severity is not Severity.NOTE]
    if worst:
        told += f": {'; '.join(worst[:_FINDINGS_SHOWN])}"
    if report.findings_total > len(worst) > _FINDINGS_SHOWN:
        told += " …"
    if report.outcome is Outcome.OK:
        return Check(what, Level.OK, told)
    fix = "touch nothing; manage.py audit verify --genesis KEY, and docs/operations.md on incidents"
    return Check(what, Level.WARNING if report.outcome is Outcome.UNDECIDABLE else Level.FAILED, told, fix)


def _known_owner(memory: Mapping[str, Any] | None) -> str | None:
    owner = memory.get("owner") if memory else None
    return owner if isinstance(owner, str) else None


def _anchors(places: AuditPlaces) -> list[str]:
    notes: list[str] = []
    for path in places.anchors:
        if path.is_file():
            notes += read_anchors(path)
    return notes


def _looks(log: LogDirectories) -> dict[str, list[int]]:
    """By each segment's name: number, size, inode, ctime in ns."""
    found = {}
    for segment in log.segments():
        told = segment.path.stat()
        found[segment.name] = [segment.number, told.st_size, told.st_ino, told.st_ctime_ns]
    return found


def _place_to_go_on(
    memory: Mapping[str, Any] | None, files: Mapping[str, list[int]], log: LogDirectories, whole_up_to_gib: float
) -> VerifiedUpTo | None:
    """None: the whole log is to be read."""
    if memory is None or sum(look[1] for look in files.values()) <= whole_up_to_gib * _GIB:
        return None
    try:
        place = VerifiedUpTo(
            log=memory["log"],
            number=memory["number"],
            n=memory["n"],
            h=b64decode(memory["h"]),
            edge=tuple(b64decode(each) for each in memory["edge"]),
            epoch_public_key=b64decode(memory["epoch_public_key"]),
            features=tuple(memory["features"]),
        )
        before: Mapping[str, list[int]] = memory["files"]
        age_s = time.time() - memory["whole_at"]
    except (KeyError, TypeError, ValueError):
        return None
    if not 0 <= age_s < _WHOLE_EVERY_S:
        return None
    retired = len(read_retired(log.first)[0])
    now = {name: look for name, look in files.items() if look[0] <= place.number}
    same = all(now.get(name) == look for name, look in before.items() if look[0] > retired)
    return place if same and now.keys() <= before.keys() else None


def _to_remember(
    report: VerificationReport, files: Mapping[str, list[int]], memory: Mapping[str, Any] | None, *, was_whole: bool
) -> dict[str, Any]:
    place = report.verified
    if report.outcome not in {Outcome.OK, Outcome.INCOMPLETE}:
        # The whole log is read until it is whole again, and its owner stays who it was.
        return {"owner": _known_owner(memory)}
    if place is None:
        return {"owner": report.owner_public_key}
    return {
        # Whose log this was the first time: from then on another owner's is tampering.
        "owner": report.owner_public_key,
        "whole_at": int(time.time()) if was_whole or memory is None else memory["whole_at"],
        "log": place.log,
        "number": place.number,
        "n": place.n,
        "h": b64encode(place.h).decode(),
        "edge": [b64encode(each).decode() for each in place.edge],
        "epoch_public_key": b64encode(place.epoch_public_key).decode(),
        "features": list(place.features),
        # As they were before they were read: what was changed meanwhile is seen the next time.
        "files": {name: look for name, look in files.items() if look[0] <= place.number},
    }
