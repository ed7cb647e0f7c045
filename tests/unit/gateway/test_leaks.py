"""A key of ours in a prompt or a URL: nothing leaves, the key is quarantined, and everybody who must hears of it."""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest

from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, InvalidRequest, Unavailable
from secure_llm_proxy.gateway import chat
from secure_llm_proxy.identity import draw_api_key
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.vocabulary.leaks import LeakedKey
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import LogCapture, SmallHouse, audit_unavailable, code_of, make_house, make_inbound

READ = partial(read_chat_completion, messages_max=512)
LEAKED = draw_api_key()
STRANGE = draw_api_key()


@pytest.fixture
def small() -> SmallHouse:
    small = make_house()
    small.leaked_keys.keys[LEAKED.secret] = LeakedKey(LEAKED.kid, LEAKED.id, "usr_owner", quarantined=False)
    return small


def asked(text: str, **more: object) -> dict[str, object]:
    return {"model": "small", "messages": [{"role": "user", "content": text}], **more}


def as_unicode_escapes(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


PLAIN = json.dumps(asked(f"Why does {LEAKED.secret} not work?"))
BODIES = {
    "plain": PLAIN,
    "streamed": json.dumps(asked(f"x{LEAKED.secret}x", stream=True)),
    "escaped throughout": PLAIN.replace(LEAKED.secret, as_unicode_escapes(LEAKED.secret)),
    "one character escaped": PLAIN.replace("slp_live", "\\u0073lp_live"),
    "escaped in its middle": PLAIN.replace(LEAKED.secret[30], f"\\u{ord(LEAKED.secret[30]):04X}"),
    "an underscore escaped": PLAIN.replace("slp_", "slp\\u005F"),
    "in a parameter": json.dumps(asked("Hi.", user=LEAKED.secret)),
    "in a parameter nobody knows": json.dumps(asked("Hi.", anything={"deep": ["x", {LEAKED.secret: 1}]})),
    "in a part of a message": json.dumps(
        {"model": "small", "messages": [{"role": "user", "content": [{"type": "text", "text": LEAKED.secret}]}]}
    ),
    "in a huge one": json.dumps(asked("x" * 3_000_000 + LEAKED.secret + "y" * 3_000_000)),
    "behind strange ones": json.dumps(asked(f"{STRANGE.secret} {LEAKED.secret}")),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_key_of_ours_in_a_body_stays_here_and_is_quarantined(small: SmallHouse, body: str) -> None:
    reply = chat(small.house, make_inbound(body.encode()), READ)

    assert code_of(reply.outcome) is ErrorCode.API_KEY_IN_BODY
    assert isinstance(reply.outcome, InvalidRequest)
    assert small.leaked_keys.quarantined == {LEAKED.kid: "found in a body"}
    assert not any("upstream" in effect or effect in {"complete", "stream"} for effect in small.effects)
    assert small.in_flight() == []


def test_it_is_recorded_before_it_is_done_logged_as_an_error_and_counted(small: SmallHouse) -> None:
    with LogCapture() as logs:
        chat(small.house, make_inbound(PLAIN.encode()), READ)

    (intent,), (result,) = small.journal.of(AuditType.ADMIN_INTENT), small.journal.of(AuditType.ADMIN_RESULT)
    (refused,) = small.journal.of(AuditType.REFUSED)
    order = [effect for effect in small.effects if effect.startswith(("record", "post", "quarantine", "alarm"))]
    assert order == [
        "record admin.intent", "quarantine", "alarm body", "post admin.result", "record llm.refused",
    ]  # fmt: skip
    assert intent.event is result.event is refused.event is EventName.SECURITY_EVENT
    assert intent.exchange_id == result.exchange_id
    assert intent.clear["act"] == "key.quarantine"
    assert (intent.clear["subject"], intent.clear["key_id"]) == (LEAKED.kid, LEAKED.id)
    assert (intent.clear["request"], intent.clear["ak"]) == (refused.exchange_id, "key_test")
    assert result.clear["ok"] is True
    assert (refused.clear["code"], refused.clear["rule"]) == ("api_key_in_body", f"leaked_key:{LEAKED.kid}")
    (alarm,) = [record for record in logs.records if record.levelno == logging.ERROR]
    assert (alarm.getMessage(), vars(alarm)["key"]) == ("leaked API key quarantined", LEAKED.kid)
    assert 'slp_leaked_keys_total{where="body"} 1.0' in small.metrics.text()
    everything = repr(small.journal.handed_over) + repr([vars(record) for record in logs.records]) + repr(small.effects)
    assert LEAKED.secret[18:] not in everything


def test_an_unknown_key_and_what_looks_like_one_are_let_through(small: SmallHouse) -> None:
    for text in (STRANGE.secret, LEAKED.secret[:-1], "slp_live_", "caf\u00e9 \u0001"):
        inbound = make_inbound(json.dumps(asked(text)).encode())
        reply = chat(small.house, inbound, READ)
        assert not isinstance(reply.outcome, Exception), text

    assert small.leaked_keys.quarantined == {}
    # Only where something well-formed was found is the database asked.
    assert small.effects.count("look for leaks") == 1


def test_a_quarantined_key_stays_here_as_well_without_another_alarm(small: SmallHouse) -> None:
    small.leaked_keys.keys[LEAKED.secret] = LeakedKey(LEAKED.kid, LEAKED.id, "usr_owner", quarantined=True)

    reply = chat(small.house, make_inbound(PLAIN.encode()), READ)

    assert code_of(reply.outcome) is ErrorCode.API_KEY_IN_BODY
    assert small.journal.types() == [AuditType.REFUSED]
    assert small.leaked_keys.quarantined == {}


def test_while_the_database_is_away_what_may_be_a_key_of_ours_stays_here(small: SmallHouse) -> None:
    small.leaked_keys.trouble = Unavailable("away", code=ErrorCode.DATABASE_UNAVAILABLE)

    refused = chat(small.house, make_inbound(PLAIN.encode()), READ)
    clean = chat(small.house, make_inbound(json.dumps(asked("Hi.")).encode()), READ)

    assert code_of(refused.outcome) is ErrorCode.DATABASE_UNAVAILABLE
    assert not isinstance(clean.outcome, Exception)


def test_while_the_log_is_away_the_key_is_quarantined_all_the_same(small: SmallHouse) -> None:
    small.journal.refusal = lambda _event: audit_unavailable()
    small.journal.post_refusal = lambda _event: audit_unavailable()

    reply = chat(small.house, make_inbound(PLAIN.encode()), READ)

    assert code_of(reply.outcome) is ErrorCode.API_KEY_IN_BODY
    assert small.leaked_keys.quarantined == {LEAKED.kid: "found in a body"}


def test_a_request_that_is_refused_anyway_asks_nobody(small: SmallHouse) -> None:
    chat(small.house, make_inbound(PLAIN.encode()[:-1]), READ)
    chat(small.house, make_inbound(PLAIN.encode(), credentials=("slp_live_wrong",)), READ)

    assert "look for leaks" not in small.effects


def test_a_key_of_ours_in_the_url_is_quarantined_before_anybody_is_identified(small: SmallHouse) -> None:
    inbound = make_inbound(key_in_url=True, keys_in_url=(STRANGE.secret, LEAKED.secret))

    reply = chat(small.house, inbound, READ)

    assert code_of(reply.outcome) is ErrorCode.API_KEY_IN_URL
    assert isinstance(reply.outcome, AuthenticationFailed)
    assert small.leaked_keys.quarantined == {LEAKED.kid: "found in a url"}
    assert "identify" not in small.effects
    (refused,) = small.journal.of(AuditType.REFUSED)
    assert (refused.event, refused.clear["rule"]) == (EventName.SECURITY_EVENT, f"leaked_key:{LEAKED.kid}")
    assert 'slp_leaked_keys_total{where="url"} 1.0' in small.metrics.text()


def test_a_url_with_a_key_is_refused_whether_the_database_is_there_or_not(small: SmallHouse) -> None:
    small.leaked_keys.trouble = Unavailable("away", code=ErrorCode.DATABASE_UNAVAILABLE)

    with LogCapture() as logs:
        away = chat(small.house, make_inbound(key_in_url=True, keys_in_url=(LEAKED.secret,)), READ)
    malformed = chat(small.house, make_inbound(key_in_url=True), READ)

    assert code_of(away.outcome) is code_of(malformed.outcome) is ErrorCode.API_KEY_IN_URL
    assert [record.getMessage() for record in logs.records if record.levelno == logging.ERROR] == [
        "leaked API key NOT quarantined"
    ]


def test_keys_of_the_url_are_not_shown_with_the_request() -> None:
    inbound = make_inbound(key_in_url=True, keys_in_url=(LEAKED.secret,))

    assert LEAKED.secret[18:] not in repr(inbound)
