"""A change is on record before it is made, and its outcome after."""

from __future__ import annotations

import json

import pytest

from secure_llm_proxy.audit import Change, recorded
from secure_llm_proxy.foundation.errors import ProxyError, Unavailable
from secure_llm_proxy.foundation.secret_values import pseudonym
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from tests.support.house import ListJournal, stop_recording_at

CHANGE = Change("user.lock", "usr_1", "user:usr_2", {"role": "admin"}, {"username": "alice"})


def untold(_made: bool, _error: ProxyError) -> None:  # noqa: FBT001
    pytest.fail("the result could be recorded")


def test_intent_change_and_result_follow_in_that_order() -> None:
    effects: list[str] = []
    journal = ListJournal(effects)

    def apply() -> str:
        effects.append("apply")
        return "done"

    given = recorded(journal, CHANGE, apply, untold)

    assert given == "done"
    assert effects == ["record admin.intent", "apply", "record admin.result"]
    intent, result = journal.durable
    assert intent.clear == {"act": "user.lock", "subject": "usr_1", "by": "user:usr_2", "role": "admin"}
    assert result.clear == {**intent.clear, "ok": True}
    assert intent.exchange_id == result.exchange_id
    assert json.loads(intent.body) == {"username": "alice"}
    assert intent.event is EventName.ADMIN_CHANGE


@pytest.mark.parametrize(
    ("change", "person"),
    [
        (CHANGE, "usr_1"),
        (Change("key.create", "kid", "user:usr_2", {"user": "usr_3"}), "usr_3"),
        (Change("project.rename", "prj_1", "user:usr_2"), "usr_2"),
        (Change("project.rename", "prj_1", "host:root"), None),
        (Change("kill", "usr_1", "host:root"), "usr_1"),
    ],
)
def test_a_change_is_sealed_by_the_key_of_whom_it_concerns_else_of_who_makes_it(
    change: Change, person: str | None
) -> None:
    journal = ListJournal([])

    recorded(journal, change, lambda: None, untold, person_key=b"k" * 32)

    expected = None if person is None else pseudonym(b"k" * 32, person)
    assert [event.clear.get("sub") for event in journal.durable] == [expected, expected]


def test_a_change_can_be_found_by_where_it_came_from_and_the_address_it_is_about() -> None:
    journal = ListJournal([])
    body = {"from": {"address": "192.0.2.7", "agent": "curl/8"}, "email": "Ana@Example.org "}

    recorded(journal, Change("user.create", "usr_1", "user:usr_2", {}, body), lambda: None, untold)

    intent, result = journal.durable
    assert intent.indexed == {"ipx": "192.0.2.7", "uax": "curl/8", "emx": "ana@example.org"}
    assert result.indexed == {}


def test_what_cannot_be_recorded_is_not_made() -> None:
    effects: list[str] = []
    journal = ListJournal(effects)
    journal.refusal = stop_recording_at(AuditType.ADMIN_INTENT)

    with pytest.raises(Unavailable):
        recorded(journal, CHANGE, lambda: effects.append("apply"), untold)

    assert effects == ["record admin.intent"]


def test_a_change_that_fails_is_on_record_as_such_and_without_its_words() -> None:
    journal = ListJournal([])

    def fail() -> None:
        raise ValueError("canary-5c1e")

    with pytest.raises(ValueError, match="canary"):
        recorded(journal, CHANGE, fail, untold)

    result = journal.durable[1]
    assert (result.clear["ok"], result.clear["why"]) == (False, "ValueError")
    assert "canary" not in str(journal.durable)


def test_a_result_that_cannot_be_recorded_is_told_and_what_was_made_still_handed_over() -> None:
    journal = ListJournal([])
    journal.refusal = stop_recording_at(AuditType.ADMIN_RESULT)
    told: list[tuple[bool, ProxyError]] = []

    given = recorded(journal, CHANGE, lambda: "a key", lambda made, error: told.append((made, error)))

    assert given == "a key"
    assert [(made, error.status) for made, error in told] == [(True, 503)]
