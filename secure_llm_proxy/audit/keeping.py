"""The thread of the writer that keeps what is finished: it backs up, and it retires what is old enough.

The writer's loop never waits for it. What must become a line of the log it asks of the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from secure_llm_proxy.audit.backup import Backup, Copied
from secure_llm_proxy.audit.control import ControlRefused, Operation
from secure_llm_proxy.audit.errands import Errands, NotDone
from secure_llm_proxy.audit.retention import NotRetired, Retention
from secure_llm_proxy.audit.retirement import RetiredSegment
from secure_llm_proxy.foundation.clock import Clock, SystemClock, rfc3339
from secure_llm_proxy.vocabulary.events import AuditType

LOOK_S = 3600.0
_ERRAND_S = 10.0
_JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class BackupState:
    """The newest run as health and status tell it. `since` is the start of a run that is under way; times are RFC 3339."""

    enabled: bool = False
    runs: int = 0
    since: str | None = None
    last: str | None = None
    last_good: str | None = None
    segments: int = 0
    snapshot: str | None = None
    troubles: tuple[str, ...] = ()

    def values(self) -> dict[str, object]:
        return {
            "enabled": self.enabled,
            "runs": self.runs,
            "running_since": self.since,
            "last": self.last,
            "last_good": self.last_good,
            "segments": self.segments,
            "key_store_snapshot": self.snapshot,
            "troubles": list(self.troubles),
        }


class Keeper:
    """Runs from `start` to `stop`; afterwards what it was at is left as a kill would leave it: whole files or none."""

    def __init__(
        self,
        report: Callable[..., None],
        *,
        backup: Backup | None,
        interval_s: float,
        retention: Retention | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.errands = Errands()
        self.state = BackupState(enabled=backup is not None)
        self.retention_trouble: str | None = None
        self._report = report
        self._backup = backup
        self._retention = retention
        self._interval_s = interval_s
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._wanted = False
        self._stopping = False
        # Dies with the process: a disk that hangs must not keep the writer from ending.
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)

    def start(self) -> None:
        if self._backup is not None or self._retention is not None:
            self._thread.start()

    def back_up_now(self) -> None:
        """The next run begins as soon as the one under way has ended."""
        with self._changed:
            self._wanted = True
            self._changed.notify()

    def operations(self) -> dict[str, Operation]:
        """What the writer's operator may ask of it: `backup` with `now` or without; answered with the newest state."""
        return {"backup": self._asked_by_operator}

    def _asked_by_operator(self, request: Mapping[str, object]) -> Mapping[str, object]:
        if not self.state.enabled:
            raise ControlRefused("backup_disabled", "AUDIT_BACKUP_ENABLED is false: no backup is made.")
        if request.get("now") is True:
            self.back_up_now()
        return self.state.values()

    def stop(self) -> None:
        """Return when the thread has ended, or will not within seconds."""
        self.errands.close()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    @property
    def backup_trouble(self) -> str | None:
        """What is wrong with the newest backup, as sentences."""
        return " ".join(self.state.troubles) or None

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        # Both at once at the start: what was left undone, and what retention may only remove when it is backed up.
        backup_due_s = look_due_s = time.monotonic()
        while self._await(min(backup_due_s, look_due_s)):
            now_s = time.monotonic()
            if self._backup is not None and (self._wanted or now_s >= backup_due_s):
                self._wanted = False
                self._back_up(self._backup)
            if self._retention is not None and now_s >= look_due_s:
                self._retire(self._retention)
            # What went wrong, or right again, is the loop's to tell.
            self.errands.ring()
            backup_due_s = now_s + self._interval_s if now_s >= backup_due_s else backup_due_s
            look_due_s = now_s + LOOK_S if now_s >= look_due_s else look_due_s

    def _await(self, due_s: float) -> bool:
        """Return when something is due or wanted (True), or the end (False)."""
        with self._changed:
            while not (self._stopping or self._wanted or due_s <= time.monotonic()):
                self._changed.wait(max(0.0, due_s - time.monotonic()))
            return not self._stopping

    def _is_stopping(self) -> bool:
        return self._stopping

    def _back_up(self, backup: Backup) -> None:
        self.state = replace(self.state, since=rfc3339(self._clock.now()))
        unsealed: tuple[str, ...] = ()
        try:
            self.errands.ask(lambda desk: desk.close_records(), patience_s=_ERRAND_S)
        except NotDone as error:
            unsealed = (f"The newest records are not in the backup: {error}.",)
        copied = backup.run(stopping=self._is_stopping)
        if not self._stopping:
            self._tell(replace(copied, troubles=unsealed + copied.troubles))

    def _tell(self, copied: Copied) -> None:
        now = rfc3339(self._clock.now())
        if copied.troubles != self.state.troubles:
            for trouble in copied.troubles:
                self._report("backup_failed", why=trouble)
            if not copied.troubles:
                self._report("backup_good_again")
        if copied.segments:
            self._report("backed_up", segments=copied.segments, held=copied.held)
        self.state = replace(
            self.state,
            runs=self.state.runs + 1,
            since=None,
            last=now,
            last_good=self.state.last_good if copied.troubles else now,
            segments=copied.held,
            snapshot=copied.snapshot or self.state.snapshot,
            troubles=copied.troubles,
        )

    def _retire(self, retention: Retention) -> None:
        if retention.clock_stepped():
            self._report("clock_was_set", what="no segment is retired before the next look")
            return
        trouble = None
        try:
            count = retention.retire(self._record_retired)
        except (NotRetired, NotDone) as error:
            trouble = f"Old segments of the audit log are kept: {error}"
        except OSError as error:
            trouble = f"Old segments of the audit log are kept: {error.strerror or error} ({error.filename})."
        else:
            if count:
                self._report("segments_retired", segments=count)
        if trouble and trouble != self.retention_trouble:
            self._report("retention_failed", why=trouble)
        self.retention_trouble = trouble

    def _record_retired(self, entry: RetiredSegment) -> None:
        self.errands.ask(lambda desk: desk.record(AuditType.SEGMENT_RETIRED, entry.clear()), patience_s=_ERRAND_S)
        self._report("segment_retired", segment=entry.number, first_index=entry.first, last_index=entry.last)
