"""What goes wrong around the log, from when until when; afterwards it goes on record in the log itself (`audit.trouble`).

While something lasts it is told on stderr (once) and in the writer's state file. What comes and goes all the time is
one alarm: it is over when it stayed away for 10 seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from secure_llm_proxy.foundation.clock import Clock, SystemClock, rfc3339

_QUIET_S = 10.0


class Subject(StrEnum):
    """What an alarm is about; `what` of an `audit.trouble` record."""

    LOG = "log"
    ROOM = "room"
    SINK = "sink"
    ANCHOR_FILE = "anchor_file"
    ANCHOR_SYSLOG = "anchor_syslog"
    SECOND_DIRECTORY = "second_directory"
    BACKUP = "backup"
    RETENTION = "retention"


@dataclass(slots=True)
class Alarm:
    """`refused` counts records that were turned away because of it; `until` is None while it lasts, `over_s` its monotonic
    twin.
    """

    subject: Subject
    why: str
    since: datetime
    until: datetime | None = None
    refused: int = 0
    over_s: float = 0.0

    def clear(self) -> dict[str, str | int | None]:
        """What stays readable of it in the log. `why` may name paths and hosts, so it is sealed."""
        return {
            "what": self.subject.value,
            "since": rfc3339(self.since),
            "until": rfc3339(self.until) if self.until else None,
            "refused": self.refused,
        }


class Alarms:
    """Used by the writer's loop alone."""

    def __init__(
        self,
        report: Callable[..., None],
        *,
        clock: Clock | None = None,
    ) -> None:
        self._report = report
        self._clock = clock or SystemClock()
        self.version = 0
        """Grows with every change of what lasts."""
        self._known: dict[Subject, Alarm] = {}

    def set(self, subject: Subject, why: str | None) -> None:
        """`why` is a sentence while something is wrong, None while nothing is. Only a change is told."""
        alarm = self._known.get(subject)
        if why is None:
            if alarm is not None and alarm.until is None:
                self.version += 1
                alarm.until, alarm.over_s = self._clock.now(), self._clock.monotonic_s()
                self._report("trouble_over", what=subject.value)
        elif alarm is None:
            self.version += 1
            self._known[subject] = Alarm(subject, why, self._clock.now())
            self._report("trouble", what=subject.value, why=why)
        elif alarm.until is not None:
            self.version += 1
            alarm.until = None
            self._report("trouble", what=subject.value, why=why)

    def refused(self, subject: Subject, records: int = 1) -> None:
        alarm = self._known.get(subject)
        if alarm is not None:
            alarm.refused += records

    def lasting(self) -> list[str]:
        """A sentence for each that is not over."""
        return [alarm.why for alarm in self._known.values() if alarm.until is None]

    def due_s(self) -> float | None:
        """Seconds until one is to be put on record; None when none will be as things stand."""
        over = [alarm.over_s for alarm in self._known.values() if alarm.until is not None]
        return max(0.0, min(over) + _QUIET_S - self._clock.monotonic_s()) if over else None

    def due(self, *, stopping: bool = False) -> list[Alarm]:
        """Those that are over and not on record yet; before the writer stops all, also what lasts."""
        if stopping:
            return list(self._known.values())
        before = self._clock.monotonic_s() - _QUIET_S
        return [alarm for alarm in self._known.values() if alarm.until is not None and alarm.over_s <= before]

    def recorded(self, alarm: Alarm) -> None:
        self._known.pop(alarm.subject, None)
