"""Every ending of an exchange: recorded under the right name, its slot given back exactly once, one line in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import orjson
import pytest
from gevent import GreenletExit

from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ClientGone,
    ErrorCode,
    InternalError,
    ProxyError,
    RequestTimeout,
    RequestTooLarge,
    Unavailable,
    UnsupportedMedia,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
)
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.gateway import Reply, chat, list_models
from secure_llm_proxy.settings import AdmissionSettings
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.house import (
    LogCapture,
    SmallHouse,
    audit_unavailable,
    code_of,
    completion_of,
    event_of,
    make_caller,
    make_house,
    make_inbound,
    stop_recording_at,
)

READ = partial(read_chat_completion, messages_max=512)
HELLO = {"messages": [{"role": "user", "content": "Hi."}]}
STREAM = {**HELLO, "stream": True}
CANARY = "canary-5c1e-in-the-prompt"


@pytest.fixture
def logs() -> Iterator[LogCapture]:
    with LogCapture() as capture:
        yield capture


def assert_closed_once(small: SmallHouse, logs: LogCapture, *, exchanges: int = 1) -> None:
    """What must hold after any ending: slots back exactly once, counted once, one line each, gauge at zero."""
    assert small.in_flight() == []
    assert len(small.throttle.released) == len(set(small.throttle.released)) == len(small.throttle.taken)
    assert len(small.metrics.facts) == exchanges
    assert small.metrics.own.security_counts().in_progress == 0
    assert len(logs.of_exchanges()) == exchanges


@dataclass(frozen=True)
class Refused:
    """One way to be refused before anything is sent."""

    prepare: Callable[[], SmallHouse]
    inbound: Callable[[], object]
    status: int
    code: ErrorCode
    event: EventName
    takes_slot: bool
    rule: str | None = None


def _house_with_key(key: object) -> SmallHouse:
    small = make_house()
    small.identity.keys["given"] = key  # type: ignore[assignment]  # a caller or an error
    return small


def _exhausted(concurrent: int, requests: int) -> SmallHouse:
    small = make_house(key_class=RateClass(requests=requests, burst=requests, concurrent=concurrent))
    small.house.throttle.take(
        key_id="key_test", key_class=small.house.key_class, address="192.0.2.1",
        address_class=small.house.address_class, exchange_id="exc_other",
    )  # fmt: skip
    small.throttle.taken.clear()
    return small


def _offering_nothing() -> SmallHouse:
    return make_house(list_models=lambda: ())


def _given() -> object:
    return make_inbound(credentials=("given",))


REFUSALS: dict[str, Refused] = {
    "blocked address": Refused(
        lambda: make_house(admission=AdmissionSettings(blocked_addresses=("127.0.0.1/32",))), make_inbound,
        403, ErrorCode.ADDRESS_BLOCKED, EventName.BLOCKED_IP, False, "blocked_ips:127.0.0.1/32",
    ),
    "address that is not allowed": Refused(
        lambda: make_house(admission=AdmissionSettings(allowed_addresses=("10.0.0.0/8",))), make_inbound,
        403, ErrorCode.ADDRESS_BLOCKED, EventName.BLOCKED_IP, False, "allowed_ips",
    ),
    "blocked agent": Refused(
        lambda: make_house(admission=AdmissionSettings(blocked_agents=("curl",))),
        lambda: make_inbound(user_agent="curl/8.5"),
        403, ErrorCode.AGENT_BLOCKED, EventName.SECURITY_EVENT, False, "blocked_user_agents:curl",
    ),
    "key in the URL": Refused(
        make_house, lambda: make_inbound(key_in_url=True),
        401, ErrorCode.API_KEY_IN_URL, EventName.SECURITY_EVENT, False,
    ),
    "no key": Refused(
        make_house, lambda: make_inbound(credentials=()),
        401, ErrorCode.MISSING_API_KEY, EventName.AUTHENTICATION_FAILED, False,
    ),
    "wrong key": Refused(
        make_house, lambda: make_inbound(credentials=("sk-wrong",)),
        401, ErrorCode.INVALID_API_KEY, EventName.AUTHENTICATION_FAILED, False,
    ),
    "expired key": Refused(
        lambda: _house_with_key(AuthenticationFailed("x", code=ErrorCode.API_KEY_EXPIRED)), _given,
        401, ErrorCode.API_KEY_EXPIRED, EventName.AUTHENTICATION_FAILED, False,
    ),
    "revoked key": Refused(
        lambda: _house_with_key(AuthenticationFailed("x", code=ErrorCode.API_KEY_REVOKED)), _given,
        401, ErrorCode.API_KEY_REVOKED, EventName.AUTHENTICATION_FAILED, False,
    ),
    "locked account": Refused(
        lambda: _house_with_key(AuthenticationFailed("x", code=ErrorCode.ACCOUNT_LOCKED)), _given,
        401, ErrorCode.ACCOUNT_LOCKED, EventName.AUTHENTICATION_FAILED, False,
    ),
    "database away": Refused(
        lambda: _house_with_key(Unavailable("x", code=ErrorCode.DATABASE_UNAVAILABLE)), _given,
        503, ErrorCode.DATABASE_UNAVAILABLE, EventName.CHAT_REQUEST, False,
    ),
    "defect in identity": Refused(
        lambda: _house_with_key(RuntimeError(CANARY)), _given,
        500, ErrorCode.INTERNAL_ERROR, EventName.CHAT_REQUEST, False,
    ),
    "missing scope": Refused(
        lambda: _house_with_key(make_caller(scopes=frozenset())), _given,
        403, ErrorCode.SCOPE_MISSING, EventName.SECURITY_EVENT, False,
    ),
    "too fast": Refused(
        lambda: _exhausted(concurrent=10, requests=1), make_inbound,
        429, ErrorCode.RATE_LIMIT_EXCEEDED, EventName.RATE_LIMIT_EXCEEDED, False,
    ),
    "too many at once": Refused(
        lambda: _exhausted(concurrent=1, requests=10), make_inbound,
        429, ErrorCode.CONCURRENCY_LIMIT_EXCEEDED, EventName.RATE_LIMIT_EXCEEDED, False,
    ),
    "empty body": Refused(
        make_house, lambda: make_inbound(b""), 400, ErrorCode.EMPTY_BODY, EventName.INVALID_REQUEST, True
    ),
    "no JSON": Refused(
        make_house, lambda: make_inbound(b'{"prompt": ' + CANARY.encode()),
        400, ErrorCode.INVALID_JSON, EventName.INVALID_REQUEST, True,
    ),
    "65 levels": Refused(
        make_house, lambda: make_inbound(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"),
        400, ErrorCode.NESTED_TOO_DEEPLY, EventName.INVALID_REQUEST, True,
    ),
    "duplicate key": Refused(
        make_house, lambda: make_inbound(b'{"messages":[],"messages":[]}'),
        400, ErrorCode.DUPLICATE_KEY, EventName.INVALID_REQUEST, True,
    ),
    "NaN": Refused(
        make_house, lambda: make_inbound(b'{"temperature":NaN}'),
        400, ErrorCode.INVALID_NUMBER, EventName.INVALID_REQUEST, True,
    ),
    "lone surrogate": Refused(
        make_house, lambda: make_inbound(rb'{"messages":[{"role":"user","content":"\ud800"}]}'),
        400, ErrorCode.INVALID_ENCODING, EventName.INVALID_REQUEST, True,
    ),
    "lone surrogate in a key": Refused(
        make_house, lambda: make_inbound(rb'{"messages":[{"role":"user","content":"x"}],"\ud800":1}'),
        400, ErrorCode.INVALID_ENCODING, EventName.INVALID_REQUEST, True,
    ),
    "bad UTF-8": Refused(
        make_house, lambda: make_inbound(b'{"a":"\xff"}'),
        400, ErrorCode.INVALID_ENCODING, EventName.INVALID_REQUEST, True,
    ),
    "wrong type": Refused(
        make_house, lambda: make_inbound({"messages": CANARY}),
        400, ErrorCode.INVALID_TYPE, EventName.INVALID_REQUEST, True,
    ),
    "missing parameter": Refused(
        make_house, lambda: make_inbound({}), 400, ErrorCode.MISSING_PARAMETER, EventName.INVALID_REQUEST, True
    ),
    "too large": Refused(
        make_house, lambda: make_inbound(RequestTooLarge("x")),
        413, ErrorCode.REQUEST_TOO_LARGE, EventName.INVALID_REQUEST, True,
    ),
    "too slow": Refused(
        make_house, lambda: make_inbound(RequestTimeout("x")),
        408, ErrorCode.REQUEST_TIMEOUT, EventName.INVALID_REQUEST, True,
    ),
    "compressed": Refused(
        make_house, lambda: make_inbound(UnsupportedMedia("x", code=ErrorCode.UNSUPPORTED_CONTENT_ENCODING)),
        415, ErrorCode.UNSUPPORTED_CONTENT_ENCODING, EventName.INVALID_REQUEST, True,
    ),
    "client gone while sending": Refused(
        make_house, lambda: make_inbound(ClientGone("x")), 499, ErrorCode.CLIENT_GONE, EventName.INVALID_REQUEST, True
    ),
    "unknown model": Refused(
        make_house, lambda: make_inbound({**HELLO, "model": "unknown"}),
        404, ErrorCode.MODEL_NOT_FOUND, EventName.INVALID_REQUEST, True,
    ),
    "model not for this key": Refused(
        lambda: _house_with_key(make_caller(models=frozenset({"large"}))), _given,
        403, ErrorCode.MODEL_NOT_ALLOWED, EventName.SECURITY_EVENT, True,
    ),
    "no models": Refused(
        _offering_nothing, make_inbound, 503, ErrorCode.MODELS_UNAVAILABLE, EventName.CHAT_REQUEST, True
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_is_answered_and_recorded_under_its_name_and_code(case: Refused, logs: LogCapture) -> None:
    small = case.prepare()

    reply = chat(small.house, case.inbound(), READ)  # type: ignore[arg-type]  # an Inbound

    outcome = reply.outcome
    assert isinstance(outcome, ProxyError)
    assert (outcome.status, outcome.code) == (case.status, case.code)
    assert small.upstream.received == []
    (record,) = small.journal.handed_over
    assert (record.type, record.event) == (AuditType.REFUSED, case.event)
    assert record.exchange_id == reply.facts.exchange_id
    assert record.id == reply.facts.audit_id
    assert (record.clear["code"], record.clear["http"], record.clear["dec"]) == (case.code, case.status, "refuse")
    if case.rule is not None:
        assert record.clear["rule"] == case.rule
    assert orjson.loads(record.body)["from"]["address"] == "127.0.0.1"
    assert_closed_once(small, logs)
    assert bool(small.throttle.taken) is case.takes_slot
    line = vars(logs.of_exchanges()[0])
    assert (line["msg"], line["code"], line["status"]) == (case.event, case.code, case.status)
    assert small.metrics.facts[0].code == case.code


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.parametrize("error", [audit_unavailable, partial(InternalError, detail="x"), partial(OSError, CANARY)])
def test_a_refusal_stands_and_frees_its_slot_though_it_cannot_be_recorded(
    case: Refused, error: Callable[[], Exception], logs: LogCapture
) -> None:
    small = case.prepare()
    small.journal.refusal = stop_recording_at(AuditType.REFUSED, error=error)

    reply = chat(small.house, case.inbound(), READ)  # type: ignore[arg-type]  # an Inbound

    assert code_of(reply.outcome) is case.code
    assert small.upstream.received == []
    assert_closed_once(small, logs)


def test_a_refusal_interrupted_while_it_is_recorded_frees_its_slot(logs: LogCapture) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.REFUSED, error=GreenletExit)

    with pytest.raises(GreenletExit):
        chat(small.house, make_inbound(b""), READ)

    assert_closed_once(small, logs)


# --- plain answers ----------------------------------------------------------------------------------------------------


def test_a_completed_request_is_recorded_before_it_is_released(logs: LogCapture) -> None:
    small = make_house()
    small.upstream.answer = completion_of("Hello ä.")

    reply = chat(small.house, make_inbound(correlation_id="their-id", person="person-7"), READ)

    assert isinstance(reply.outcome, Completion)
    start, end = small.journal.durable
    assert (start.type, end.type) == (AuditType.LLM_START, AuditType.LLM_END)
    assert end.clear["sid"] == start.id == reply.facts.audit_id
    assert (end.clear["st"], end.clear["http"]) == ("complete", 200)
    assert (end.clear["tin"], end.clear["tout"]) == (3, 2)
    assert orjson.loads(end.body) == {"answer": reply.outcome.payload}
    assert orjson.loads(start.body)["from"] == {
        "address": "127.0.0.1", "agent": "OpenAI/Python 2.0", "person": "person-7", "correlation_id": "their-id",
    }  # fmt: skip
    assert_closed_once(small, logs)
    line = vars(logs.of_exchanges()[0])
    assert (line["msg"], line["status"], line["model"], line["provider"]) == ("CHAT_REQUEST", 200, "small", "tested")
    assert (line["user"], line["key"], line["audit_id"]) == ("usr_test", "key_test", start.id)


@pytest.mark.parametrize(
    ("error", "status", "code", "end_status"),
    [
        (UpstreamFailed("x", detail="reset"), 502, ErrorCode.UPSTREAM_ERROR, "upstream_error"),
        (UpstreamTimeout("x"), 504, ErrorCode.UPSTREAM_TIMEOUT, "upstream_timeout"),
        (UpstreamRefused("x", status=400), 400, ErrorCode.UPSTREAM_REJECTED, "upstream_error"),
        (UpstreamRefused("x", status=429, code=ErrorCode.UPSTREAM_RATE_LIMITED), 429, ErrorCode.UPSTREAM_RATE_LIMITED, "upstream_error"),
        (ClientGone("x"), 499, ErrorCode.CLIENT_GONE, "client_abort"),
        (RuntimeError(CANARY), 500, ErrorCode.INTERNAL_ERROR, "internal_error"),
        (InternalError(detail="x"), 500, ErrorCode.INTERNAL_ERROR, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)  # fmt: skip
@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["plain", "stream"])
def test_a_failure_of_the_provider_is_recorded_as_the_end_that_it_is(
    body: object, error: Exception, status: int, code: ErrorCode, end_status: str, logs: LogCapture
) -> None:
    small = make_house()
    small.upstream.answer = small.upstream.script = error

    reply = chat(small.house, make_inbound(body), READ)

    assert isinstance(reply.outcome, ProxyError)
    assert (reply.outcome.status, reply.outcome.code) == (status, code)
    assert CANARY not in reply.outcome.public
    assert small.journal.types() == [AuditType.LLM_START, AuditType.LLM_END]
    end = small.journal.durable[1]
    assert (end.clear["st"], end.clear["http"], end.clear["code"]) == (end_status, status, code)
    assert_closed_once(small, logs)


@pytest.mark.parametrize("error", [audit_unavailable, partial(InternalError, detail="x"), partial(OSError, "x")])
def test_an_answer_whose_end_cannot_be_recorded_is_withheld(error: Callable[[], Exception], logs: LogCapture) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_END, error=error)

    reply = chat(small.house, make_inbound(), READ)

    assert isinstance(reply.outcome, ProxyError)
    assert reply.outcome.status in {500, 503}
    assert_closed_once(small, logs)
    # One end and no second one: it says what happened upstream, and never that nothing was sent.
    (end,) = small.journal.of(AuditType.LLM_END)
    assert end.clear["st"] == "complete"
    assert len(small.upstream.received) == 1


def test_a_failure_whose_end_cannot_be_recorded_is_told_as_unrecorded(logs: LogCapture) -> None:
    small = make_house()
    small.upstream.answer = UpstreamTimeout("x")
    small.journal.refusal = stop_recording_at(AuditType.LLM_END)

    reply = chat(small.house, make_inbound(), READ)

    assert code_of(reply.outcome) is ErrorCode.AUDIT_UNAVAILABLE
    (end,) = small.journal.of(AuditType.LLM_END)
    assert end.clear["st"] == "upstream_timeout"
    assert_closed_once(small, logs)


@pytest.mark.parametrize("error", [audit_unavailable, partial(InternalError, detail="refused"), partial(OSError, "x")])
@pytest.mark.parametrize("queue_full", [False, True])
def test_an_intent_that_cannot_be_recorded_leaves_nothing_behind(
    error: Callable[[], Exception],
    queue_full: bool,  # noqa: FBT001  pytest gives it
    logs: LogCapture,
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(AuditType.LLM_START, error=error)
    if queue_full:
        small.journal.post_refusal = small.journal.refusal = lambda _event: error()

    reply = chat(small.house, make_inbound(), READ)

    assert isinstance(reply.outcome, ProxyError)
    assert reply.outcome.status in {500, 503}
    assert small.upstream.received == []
    assert all(end.clear["st"] == "not_sent" for end in small.journal.of(AuditType.LLM_END))
    assert_closed_once(small, logs)


def test_a_missing_record_costs_one_patience_and_not_two(logs: LogCapture) -> None:
    small = make_house()
    small.journal.refusal = lambda _event: audit_unavailable()

    chat(small.house, make_inbound(), READ)

    assert [effect for effect in small.effects if effect.startswith("record")] == ["record llm.start"]
    assert_closed_once(small, logs)


# --- the worker is stopped in mid-request -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [GreenletExit, KeyboardInterrupt, SystemExit])
def test_a_stop_while_the_provider_answers_is_recorded_on_the_way_out(
    stop: type[BaseException], logs: LogCapture
) -> None:
    small = make_house()
    small.upstream.answer = stop()

    with pytest.raises(stop):
        chat(small.house, make_inbound(), READ)

    assert small.effects[-3:] == ["post llm.end", "release", "count"]
    (end,) = small.journal.of(AuditType.LLM_END)
    assert (end.clear["st"], end.clear["http"]) == ("server_stop", 503)
    assert_closed_once(small, logs)


@pytest.mark.parametrize(("kind", "status"), [(AuditType.LLM_START, "not_sent"), (AuditType.LLM_END, "complete")])
def test_a_stop_while_a_record_is_waited_for_frees_the_slot_and_writes_one_true_end(
    kind: AuditType, status: str, logs: LogCapture
) -> None:
    small = make_house()
    small.journal.refusal = stop_recording_at(kind, error=GreenletExit)

    with pytest.raises(GreenletExit):
        chat(small.house, make_inbound(), READ)

    assert [end.clear["st"] for end in small.journal.of(AuditType.LLM_END)] == [status]
    assert_closed_once(small, logs)


@pytest.mark.parametrize("queue_error", [audit_unavailable, partial(InternalError, detail="x")])
def test_a_stop_with_a_full_queue_frees_the_slot_all_the_same(
    queue_error: Callable[[], ProxyError], logs: LogCapture
) -> None:
    small = make_house()
    small.upstream.answer = GreenletExit()
    small.journal.post_refusal = lambda _event: queue_error()

    with pytest.raises(GreenletExit):
        chat(small.house, make_inbound(), READ)

    assert_closed_once(small, logs)


def test_a_stop_before_anything_was_started_needs_no_end(logs: LogCapture) -> None:
    small = make_house()

    with pytest.raises(GreenletExit):
        chat(small.house, make_inbound(GreenletExit()), READ)

    assert small.journal.handed_over == []
    assert_closed_once(small, logs)


# --- model lists ------------------------------------------------------------------------------------------------------


def test_a_model_list_closes_once_and_is_no_matter_for_the_sealed_log(logs: LogCapture) -> None:
    small = make_house()

    reply = list_models(small.house, make_inbound(door="/v1/models"), "large")

    assert reply.outcome == ("large",)
    assert small.journal.handed_over == []
    assert vars(logs.of_exchanges()[0])["msg"] == "MODELS_REQUEST"
    assert_closed_once(small, logs)


@pytest.mark.parametrize(
    ("wanted", "code"), [("unknown", ErrorCode.MODEL_NOT_FOUND), ("\x1b[2J", ErrorCode.MODEL_NOT_FOUND)]
)
def test_an_unknown_model_is_refused_without_an_echo(wanted: str, code: ErrorCode, logs: LogCapture) -> None:
    small = make_house()

    reply = list_models(small.house, make_inbound(), wanted)

    assert isinstance(reply.outcome, ProxyError)
    assert reply.outcome.code is code
    assert wanted not in reply.outcome.public
    assert small.journal.types() == [AuditType.REFUSED]
    assert_closed_once(small, logs)


def test_a_key_without_the_scope_sees_no_models(logs: LogCapture) -> None:
    small = _house_with_key(make_caller(scopes=frozenset({"chat"})))

    reply = list_models(small.house, make_inbound(credentials=("given",)))

    assert code_of(reply.outcome) is ErrorCode.SCOPE_MISSING
    assert_closed_once(small, logs)


def test_a_stop_while_models_are_asked_for_frees_the_slot(logs: LogCapture) -> None:
    def stopped() -> tuple[str, ...]:
        raise GreenletExit

    small = make_house(list_models=stopped)

    with pytest.raises(GreenletExit):
        list_models(small.house, make_inbound())

    assert_closed_once(small, logs)


# --- what is told where -----------------------------------------------------------------------------------------------


def _replies_with_canaries(small: SmallHouse) -> Iterator[Reply]:
    """Endings in which the prompt, the answer, the key, the address's owner and the agent carry a canary each."""
    messages = [{"role": "user", "content": CANARY}]
    known = {"person": f"{CANARY}-person", "user_agent": f"{CANARY}-agent", "session": "session-canary"}
    small.upstream.answer = completion_of(f"{CANARY}-answer")
    small.upstream.script = (event_of(f"{CANARY}-answer"), UpstreamFailed(f"{CANARY}-public"))
    yield chat(small.house, make_inbound({"messages": messages, "user": CANARY}, **known), READ)
    stream = chat(small.house, make_inbound({"messages": messages, "stream": True}, **known), READ)
    with pytest.raises(UpstreamFailed):
        list(stream.outcome)  # type: ignore[arg-type]  # a stream, as asked for
    yield stream
    yield chat(small.house, make_inbound({"messages": messages, "model": CANARY}, **known), READ)
    yield chat(small.house, make_inbound({"messages": messages, CANARY: 1, "temperature": CANARY}, **known), READ)
    yield chat(small.house, make_inbound(f'{{"{CANARY}":1,"{CANARY}":2}}'.encode(), **known), READ)
    yield chat(small.house, make_inbound(CANARY.encode(), **known), READ)
    yield chat(small.house, make_inbound({"messages": messages}, credentials=(CANARY,), **known), READ)
    small.upstream.answer = ValueError(CANARY)
    yield chat(small.house, make_inbound({"messages": messages}, **known), READ)


def test_no_word_of_prompt_answer_person_or_key_stands_in_a_log_line_a_metric_or_clear_metadata(
    logs: LogCapture,
) -> None:
    small = make_house()
    formatter = logging.Formatter("%(message)s")

    replies = list(_replies_with_canaries(small))

    assert len(replies) == 8
    for record in logs.records:
        fields = {name: value for name, value in vars(record).items() if name not in {"exc_info", "exc_text"}}
        assert CANARY not in str(fields)
        record.exc_info = record.exc_text = None
        assert CANARY not in formatter.format(record)
    for event in small.journal.handed_over:
        assert CANARY not in str(dict(event.clear))
        assert CANARY not in f"{event.id}{event.exchange_id}{event.event}"
    assert CANARY not in small.metrics.text()
    # The sealed part is where it belongs.
    assert any(CANARY.encode() in event.body for event in small.journal.handed_over)
    assert all(CANARY not in str(reply.facts) for reply in replies)


def test_a_person_stands_in_clear_only_as_a_pseudonym_that_stays_the_same() -> None:
    small = make_house()

    for person in ("ann@example.test", "ann@example.test", "bob@example.test", None):
        chat(small.house, make_inbound(person=person), READ)

    subjects = [event.clear["sub"] for event in small.journal.of(AuditType.LLM_START)]
    assert subjects[0] == subjects[1]
    assert len(set(subjects)) == 3
    assert all(isinstance(subject, str) and subject.startswith("s_") and len(subject) == 18 for subject in subjects)


def test_the_person_is_the_header_s_else_the_body_s_else_the_key_s_owner() -> None:
    small = make_house()
    messages = [{"role": "user", "content": "x"}]

    for person, body in (
        ("ann", {"messages": messages, "user": "bob"}),
        (None, {"messages": messages, "user": "ann"}),
        (None, {"messages": messages, "user": "bob", "safety_identifier": "ann"}),
        (None, {"messages": messages}),
    ):
        chat(small.house, make_inbound(body, person=person), READ)

    subjects = [event.clear["sub"] for event in small.journal.of(AuditType.LLM_START)]
    assert subjects[0] == subjects[1] == subjects[2]
    assert subjects[3] != subjects[0]


def test_a_person_named_as_anthropic_s_clients_do_is_the_same_one() -> None:
    small = make_house()

    chat(small.house, make_inbound({"messages": []}, person="ann"), _read_anthropic)
    for metadata in ({"user_id": "ann"}, {"user_id": 7}, "ann"):
        chat(small.house, make_inbound({"messages": [], "metadata": metadata, "user": "bob"}), _read_anthropic)

    named, told, *others = [event.clear["sub"] for event in small.journal.of(AuditType.LLM_START)]
    assert named == told
    assert len({named, *others}) == 2


def _read_anthropic(body: JsonObject) -> ChatRequest:
    return ChatRequest("small", stream=False, payload=body, format=WireFormat.ANTHROPIC_MESSAGES)


def test_clear_metadata_is_of_types_and_names_that_the_log_takes() -> None:
    from secure_llm_proxy.audit.format import check_metadata  # noqa: PLC0415  the writer's own check

    small = make_house()
    for reply in _replies_with_canaries(small):
        assert reply.facts.exchange_id

    for event in small.journal.handed_over:
        named = {"ev": event.event.value} if event.event is not None else {}
        check_metadata({"ty": event.type.value, **named, "id": event.id, "rid": event.exchange_id, **event.clear})


@pytest.mark.parametrize("edge", ["0123456789abcdef0123456789abcdef", None])
def test_the_records_that_begin_an_exchange_or_refuse_it_name_the_line_of_nginxs_log(
    edge: str | None, logs: LogCapture
) -> None:
    served, turned_away = make_house(), make_house()

    chat(served.house, make_inbound(edge_id=edge), READ)
    chat(turned_away.house, make_inbound(edge_id=edge, credentials=()), READ)

    start, end = served.journal.handed_over
    (refusal,) = turned_away.journal.handed_over
    assert [record.clear.get("eid") for record in (start, end, refusal)] == [edge, None, edge]
    assert [vars(line).get("edge_id") for line in logs.of_exchanges()] == [edge, edge]
