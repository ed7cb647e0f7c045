"""Which sets of a backup are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.cli.host_backup.sets import STAMP, kept

NOW = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)


def stamps(*ages: timedelta) -> list[str]:
    return sorted((NOW - age).strftime(STAMP) for age in ages)


def test_all_of_two_days_are_kept_and_then_the_newest_of_each_day() -> None:
    hourly = stamps(*(timedelta(hours=hour) for hour in range(24 * 40)))

    left = kept(hourly, 30, NOW)

    recent = [stamp for stamp in left if stamp > (NOW - timedelta(days=2)).strftime(STAMP)]
    older = sorted(left - set(recent))
    assert len(recent) == 48
    assert older[-1] == "20261119T123000Z"
    assert {stamp[9:] for stamp in older[1:-1]} == {"233000Z"}
    assert older[0][:8] == "20261022"


@given(st.lists(st.integers(0, 400 * 86_400), min_size=1, unique=True), st.integers(1, 400))
def test_the_newest_always_stays_and_nothing_is_older_than_asked_but_it(ages: list[int], days: int) -> None:
    every = stamps(*(timedelta(seconds=age) for age in ages))

    left = kept(every, days, NOW)

    assert every[-1] in left
    assert all(stamp >= (NOW - timedelta(days=days)).strftime(STAMP) for stamp in left - {every[-1]})
