"""What gunicorn's own parser refuses is answered in the one error shape, and is never called a fault of ours."""

from __future__ import annotations

import inspect
import json
import ssl
from functools import partial

import pytest
from flask import Flask
from gunicorn.http import errors as refusals

from secure_llm_proxy.foundation.errors import ErrorCode, Unavailable
from secure_llm_proxy.server.worker import _BODY, _REASONS, Worker, _refusal_of
from secure_llm_proxy.vocabulary.connection import UNREAD
from secure_llm_proxy.vocabulary.events import AuditType, EventName
from secure_llm_proxy.web.headers import SECURITY_HEADERS
from secure_llm_proxy.web.refusals import record_unread
from tests.support.house import LogCapture, make_house, make_web_house

CANARY = "slp_live_canary_5c1e"
# ConfigurationProblem is an operator's mistake and InvalidResponseHeader(Name) a defect of the application's.
NOT_THE_CLIENTS = {"ConfigurationProblem", "InvalidResponseHeader", "InvalidResponseHeaderName"}
CLASSES = [
    kind
    for _, kind in inspect.getmembers(refusals, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == refusals.__name__
]


def make(kind: type[Exception]) -> Exception:
    """An instance with a client's text in every argument that its constructor takes."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return kind(*[CANARY for _ in needed])


def test_the_classes_are_all_there() -> None:
    assert len(CLASSES) >= 18
    assert {kind.__name__ for kind in CLASSES} >= NOT_THE_CLIENTS


@pytest.mark.parametrize(
    "kind", [k for k in CLASSES if k.__name__ not in NOT_THE_CLIENTS], ids=lambda kind: kind.__name__
)
def test_nothing_that_a_client_sent_is_a_500(kind: type[Exception]) -> None:
    status, error_type, code, message = _refusal_of(make(kind))

    assert 400 <= status < 500 or status == 501
    assert status in _REASONS
    assert error_type in {"invalid_request_error", "permission_error"}
    assert ErrorCode(code)
    assert CANARY not in message


@pytest.mark.parametrize("kind", [k for k in CLASSES if k.__name__ in NOT_THE_CLIENTS], ids=lambda kind: kind.__name__)
def test_what_is_not_the_clients_fault_is_not_told_as_such(kind: type[Exception]) -> None:
    assert _refusal_of(make(kind))[:3] == (500, "internal_error", "internal_error")


@pytest.mark.parametrize("error", [ssl.SSLError(1, CANARY), ConnectionResetError(), BrokenPipeError(), TimeoutError()])
def test_a_broken_connection_is_no_fault_of_ours(error: BaseException) -> None:
    assert _refusal_of(error)[0] == 400


@pytest.mark.parametrize("error", [RuntimeError(CANARY), KeyError(CANARY), MemoryError(), AssertionError(CANARY)])
def test_a_defect_is_a_bare_500(error: BaseException) -> None:
    status, error_type, code, message = _refusal_of(error)

    assert (status, error_type, code) == (500, "internal_error", "internal_error")
    assert CANARY not in message


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_body_is_valid_json_in_openais_shape(kind: type[Exception]) -> None:
    status, error_type, code, message = _refusal_of(make(kind))

    body = json.loads(_BODY % (message, error_type, code))

    assert body == {"error": {"message": message, "type": error_type, "param": None, "code": code}}
    assert status in _REASONS


class Client:
    """The connection's end as the worker sees it: keeps what is sent, or is gone."""

    def __init__(self, error: OSError | None = None) -> None:
        self.sent = b""
        self.error = error
        self.timeout_s: float | None = 0.0

    def settimeout(self, seconds: float | None) -> None:
        self.timeout_s = seconds

    def sendall(self, content: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.sent += content


def refuse(
    error: BaseException,
    client: Client,
    address: object = ("192.0.2.7", 40000),
    application: Flask | None = None,
) -> None:
    """Ask the worker's method without a running gunicorn: it uses nothing of the worker but its application."""
    worker = Worker.__new__(Worker)
    worker.send_timeout_s = 7.0
    if application is not None:
        worker.wsgi = application
    worker.handle_error(None, client, address, error)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_answer_is_whole_http_that_ends_the_connection_and_quotes_nothing(kind: type[Exception]) -> None:
    client = Client()

    with LogCapture() as logs:
        refuse(make(kind), client)

    # Between two requests gunicorn's sockets wait without limit, also for one that never reads.
    assert client.timeout_s == 7.0
    head, _, body = client.sent.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert lines[0].startswith("HTTP/1.1 ")
    assert headers["Connection"] == "close"
    assert headers["Content-Type"] == "application/json"
    assert int(headers["Content-Length"]) == len(body)
    assert headers["X-Request-Id"].startswith("exc_")
    assert json.loads(body)["error"]["code"]
    assert CANARY.encode() not in client.sent
    (record,) = logs.records
    assert vars(record)["request_id"] == headers["X-Request-Id"]
    assert vars(record)["why"] == kind.__name__
    # Our formatters write of an exception its class and places only (tests of telemetry).
    assert CANARY not in str(
        {name: value for name, value in vars(record).items() if name not in {"exc_info", "exc_text"}}
    )


def test_the_answer_wears_what_every_answer_wears() -> None:
    client = Client()

    refuse(refusals.InvalidRequestLine("x"), client)

    lines = client.sent.partition(b"\r\n\r\n")[0].decode("ascii").split("\r\n")[1:]
    for name, value in SECURITY_HEADERS:
        assert lines.count(f"{name}: {value}") == 1, name


@pytest.mark.parametrize("error", [BrokenPipeError(), ConnectionResetError(), TimeoutError()])
def test_a_client_that_left_before_its_refusal_troubles_nobody(error: OSError) -> None:
    with LogCapture() as logs:
        refuse(refusals.InvalidRequestLine("x"), Client(error), address="")

    assert [record.levelname for record in logs.records] == ["WARNING", "DEBUG"]
    assert vars(logs.records[0])["address"] == "unix"


@pytest.mark.parametrize("address", [("192.0.2.7", 40000), ""])
def test_what_was_no_request_is_on_record_under_the_id_that_its_sender_was_told(address: object) -> None:
    small, client, application = make_house(), Client(), Flask("any")
    application.extensions[UNREAD] = partial(record_unread, make_web_house(small))

    refuse(refusals.InvalidRequestLine(CANARY), client, address, application)

    (record,) = small.journal.handed_over
    assert (record.type, record.event) == (AuditType.REFUSED, EventName.INVALID_REQUEST)
    assert f"X-Request-Id: {record.exchange_id}\r\n".encode() in client.sent
    assert record.clear == {"rt": "unread", "dec": "refuse", "http": 400, "code": "malformed_request"}
    assert json.loads(record.body) == {"from": {"address": "192.0.2.7"} if address else {}}
    assert CANARY.encode() not in record.body


def test_what_was_no_request_is_refused_though_it_cannot_be_recorded() -> None:
    small, client, application = make_house(), Client(), Flask("any")
    small.journal.post_refusal = lambda _event: Unavailable("x", code=ErrorCode.AUDIT_UNAVAILABLE)
    application.extensions[UNREAD] = partial(record_unread, make_web_house(small))

    refuse(refusals.InvalidRequestLine(CANARY), client, application=application)

    assert client.sent.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("error", [ConnectionResetError(), BrokenPipeError(), ssl.SSLError(1, CANARY)])
def test_a_connection_that_broke_leaves_no_record(error: BaseException) -> None:
    small, application = make_house(), Flask("any")
    application.extensions[UNREAD] = partial(record_unread, make_web_house(small))

    refuse(error, Client(BrokenPipeError()), application=application)

    assert small.journal.handed_over == []
