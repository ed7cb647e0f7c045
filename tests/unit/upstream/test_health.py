from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from secure_llm_proxy.upstream.health import ProviderHealth


@dataclass
class ManualClock:
    at_s: float = 100.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at_s, UTC)

    def monotonic_s(self) -> float:
        return self.at_s


def test_a_failure_is_remembered_for_a_minute() -> None:
    clock = ManualClock()
    health = ProviderHealth(clock)
    health.failed("The provider could not be reached.")

    clock.at_s += 60
    after_a_minute = health.trouble()
    clock.at_s += 1

    assert after_a_minute == "The provider could not be reached. (60 s ago)"
    assert health.trouble() is None


def test_an_answer_ends_the_trouble() -> None:
    health = ProviderHealth(ManualClock())
    health.failed("The provider could not be reached.")

    health.answered()

    assert health.trouble() is None
