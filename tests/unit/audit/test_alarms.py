"""What is told of a trouble, and when it goes on record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from secure_llm_proxy.audit.alarms import Alarms, Subject
from tests.support.audit_log import Reports


class FakeClock:
    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=self.passed_s)

    def monotonic_s(self) -> float:
        return 1000.0 + self.passed_s


def test_a_trouble_is_told_when_it_begins_and_when_it_ends_and_then_put_on_record() -> None:
    clock, reports = FakeClock(), Reports()
    alarms = Alarms(reports, clock=clock)

    for _ in range(3):
        alarms.set(Subject.ROOM, "full")
        alarms.refused(Subject.ROOM, 2)
        clock.passed_s += 1
    assert alarms.lasting() == ["full"]
    assert alarms.due() == []
    assert alarms.due_s() is None
    alarms.set(Subject.ROOM, None)

    assert alarms.lasting() == []
    assert reports.names == ["trouble", "trouble_over"]
    assert alarms.due() == []
    assert alarms.due_s() == 10.0
    clock.passed_s += 10
    (alarm,) = alarms.due()
    assert alarm.clear() == {
        "what": "room",
        "since": "2026-11-21T00:00:00.000000Z",
        "until": "2026-11-21T00:00:03.000000Z",
        "refused": 6,
    }
    alarms.recorded(alarm)
    assert alarms.due() == []
    assert alarms.due_s() is None


def test_what_comes_and_goes_is_one_alarm() -> None:
    clock, reports = FakeClock(), Reports()
    alarms = Alarms(reports, clock=clock)

    for _ in range(5):
        alarms.set(Subject.SINK, "away")
        clock.passed_s += 1
        alarms.set(Subject.SINK, None)
        clock.passed_s += 9
        assert alarms.due() == []
    clock.passed_s += 1

    (alarm,) = alarms.due()
    assert reports.names == ["trouble", "trouble_over"] * 5
    assert alarm.clear()["since"] == "2026-11-21T00:00:00.000000Z"
    assert alarm.clear()["until"] == "2026-11-21T00:00:41.000000Z"


def test_what_lasts_when_the_writer_stops_goes_on_record_without_an_end() -> None:
    alarms = Alarms(Reports(), clock=FakeClock())

    alarms.set(Subject.LOG, "read-only")

    (alarm,) = alarms.due(stopping=True)
    assert alarm.clear()["until"] is None
