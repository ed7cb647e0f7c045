"""One thing that was looked at, and how a list of them is told: as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    UNKNOWN = "unknown"
    """It could not be looked at: no right, or no such tool. Never taken for well."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `fix` is what to do, empty when nothing is."""

    what: str
    level: Level
    found: str
    fix: str = ""


def ok(what: str, found: str) -> Check:
    return Check(what, Level.OK, found)


def warning(what: str, found: str, fix: str) -> Check:
    return Check(what, Level.WARNING, found, fix)


def failed(what: str, found: str, fix: str) -> Check:
    return Check(what, Level.FAILED, found, fix)


def unknown(what: str, found: str, fix: str) -> Check:
    return Check(what, Level.UNKNOWN, found, fix)


def judged(what: str, value: float, found: str, fix: str, *, warning_from: float, failed_from: float) -> Check:
    """A figure that is worse the higher it is."""
    if value >= failed_from:
        return Check(what, Level.FAILED, found, fix)
    if value >= warning_from:
        return Check(what, Level.WARNING, found, fix)
    return Check(what, Level.OK, found)


def counted(checks: Iterable[Check]) -> dict[Level, int]:
    counts = dict.fromkeys(Level, 0)
    for check in checks:
        counts[check.level] += 1
    return counts


def values(check: Check) -> dict[str, str]:
    return {"what": check.what, "level": check.level.value, "found": check.found, "fix": check.fix}


def as_json(checks: Iterable[Check], **members: object) -> str:
    """One document: `members` and the checks."""
    return json.dumps({**members, "checks": [values(check) for check in checks]}, indent=2, ensure_ascii=False)


def as_table(checks: Sequence[Check]) -> str:
    """Left-aligned columns, what to do on a line of its own below. Whatever could move the terminal's cursor is escaped."""
    rows = [("CHECK", "STATE", "FOUND", "")]
    rows += [
        (printable(check.what), check.level.value, printable(check.found), printable(check.fix)) for check in checks
    ]
    first, second = (max(len(row[column]) for row in rows) for column in range(2))
    lines = []
    for what, level, found, fix in rows:
        lines.append(f"{what.ljust(first)}  {level.ljust(second)}  {found}".rstrip())
        if fix:
            lines.append(f"{' ' * (first + second + 4)}-> {fix}")
    return "\n".join(lines)


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)
