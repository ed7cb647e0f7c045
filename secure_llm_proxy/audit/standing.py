"""How the audit log stands, for health, status, doctor and metrics: what the writer tells, and what of it is a trouble."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from secure_llm_proxy.audit.index import AuditIndex
from secure_llm_proxy.audit.state import OLD_S, WriterState, read_state
from secure_llm_proxy.audit.syslog import is_this_host
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.settings import AuditSettings

NOT_ANCHORED = (
    "No checkpoint of the audit log has left this host: whoever is root here could rewrite what was recorded. Set "
    "AUDIT_ANCHOR_SYSLOG to tcp://host:port or udp://host:port, or keep the database on another host."
)


def standing_of(settings: AuditSettings, database: Database, *, required: bool) -> LogStanding:
    """`required`: that no checkpoint leaves the host is a trouble, not only told. Asks the database where it is another host's."""

    def anchored_in_database(log: str) -> bool:
        if not _is_elsewhere(database):
            return False
        return bool(database.run(lambda session: AuditIndex().anchors(session, log, limit=1)))

    return LogStanding(settings.state_path, required=required, anchored_elsewhere=anchored_in_database)


def _is_elsewhere(database: Database) -> bool:
    url = database.engine.url
    hosts = url.host or url.query.get("host") or ""
    host = hosts if isinstance(hosts, str) else hosts[0]
    return not database.is_sqlite and not host.startswith("/") and not is_this_host(host)


class LogStanding:
    """Reads the writer's state file at every question. `anchored_elsewhere` is asked with the log's name whether one of its
    checkpoints stands on another host without the writer's doing, in a database there for instance; once it does, it does.
    """

    def __init__(self, state_path: Path, *, required: bool, anchored_elsewhere: Callable[[str], bool]) -> None:
        self._path = state_path
        self._required = required
        self._anchored_elsewhere = anchored_elsewhere
        self._is_anchored = False

    def disk_trouble(self) -> str | None:
        """A sentence when new requests are refused for want of room, or nobody knows whether there is any."""
        state = read_state(self._path)
        if state is None:
            return f"The audit writer has left no word of its disk in {self._path}."
        if state.age_s > OLD_S:
            return f"The audit writer has told nothing of its disk for {state.age_s:.0f} s."
        return state.room

    def evidence_trouble(self) -> str | None:
        """A sentence when the log is written but what it is worth suffers: sinks, anchors, backups. Stops no request."""
        state = self._fresh()
        if state is None:
            return None
        troubles = [each for each in state.troubles if each != state.room]
        if self._required and not self.is_anchored_off_host(state):
            troubles.append(NOT_ANCHORED)
        return " ".join(troubles) or None

    def is_anchored_off_host(self, state: WriterState) -> bool:
        if not self._is_anchored:
            try:
                self._is_anchored = state.is_anchored_off_host or self._anchored_elsewhere(state.log)
            except ProxyError:
                # A database that is away is told elsewhere; nothing is known of what stands there.
                return False
        return self._is_anchored

    def told(self) -> dict[str, object]:
        """For `/security/status`: everything that operators may know. `{}` while there is no word of the writer."""
        state = self._fresh()
        if state is None:
            return {}
        age_s = state.checkpoint_age_s
        return {
            "log": state.log,
            "lines": state.n,
            "last_checkpoint": {"n": state.checkpoint_n, "t": state.checkpoint_t, "age_s": age_s and round(age_s, 1)},
            "free_bytes": state.free_bytes,
            "room": state.room is None,
            "sinks": [
                {"name": s.name, "policy": s.policy, "behind": s.behind, "trouble": s.trouble} for s in state.sinks
            ],
            "anchors": [
                {"name": a.name, "n": a.n, "t": a.t, "leaves_host": a.leaves_host, "trouble": a.trouble}
                for a in state.anchors
            ],
            "anchored_off_host": self.is_anchored_off_host(state),
            "backup": dict(state.backup),
            "troubles": list(state.troubles),
        }

    def gauges(self) -> Mapping[str, tuple[str, float]]:
        """For Prometheus: what each figure means, and the figure. Nothing while there is no word of the writer."""
        state = self._fresh()
        if state is None:
            return {}
        found: dict[str, tuple[str, float]] = {
            "slp_audit_lines": ("Lines of this host's audit log.", state.n),
            "slp_audit_has_room": ("1 while the audit log's disk takes new requests.", float(state.room is None)),
            "slp_audit_troubles": ("Troubles that the audit writer tells of.", len(state.troubles)),
            "slp_audit_anchored_off_host": (
                "1 once a checkpoint has left this host.",
                float(self.is_anchored_off_host(state)),
            ),
        }
        if state.free_bytes is not None:
            found["slp_audit_free_bytes"] = ("Free space on the audit log's disk.", max(0, state.free_bytes))
        if (age_s := state.checkpoint_age_s) is not None:
            found["slp_audit_last_checkpoint_age_seconds"] = ("Age of the newest checkpoint.", age_s)
        if state.sinks:
            behind = sum(sink.behind for sink in state.sinks)
            found["slp_audit_sink_behind_lines"] = ("Lines that the second sink has not taken.", behind)
        return found

    def _fresh(self) -> WriterState | None:
        state = read_state(self._path)
        return None if state is None or state.age_s > OLD_S else state
