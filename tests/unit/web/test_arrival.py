"""A request as it came: its id and address once, and the headers that its answer still lacks."""

from __future__ import annotations

from dataclasses import replace
from wsgiref.types import WSGIEnvironment

import pytest

from secure_llm_proxy.settings import AdmissionSettings, ServerSettings, Settings
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.headers import SECURITY_HEADERS
from secure_llm_proxy.web.house import WebHouse
from tests.support.house import make_house, make_web_house

PRODUCTION = Settings(server=ServerSettings(profile="production"))


def arrival(environ: WSGIEnvironment | None = None, settings: Settings | None = None) -> Arrival:
    return Arrival(environ or {}, make_web_house(make_house(), settings))


def counting_house() -> tuple[WebHouse, list[tuple[str, str | None]]]:
    """A house that notes each question for an address."""
    asked: list[tuple[str, str | None]] = []

    def address_of(peer: str, forwarded: str | None) -> str:
        asked.append((peer, forwarded))
        return peer

    return replace(make_web_house(make_house()), address_of=address_of), asked


def test_every_answer_lacks_what_it_was_not_given() -> None:
    request = arrival({"HTTP_X_CORRELATION_ID": "their-id"})

    missing = request.missing_headers([("Content-Type", "application/json")])

    assert missing == [*SECURITY_HEADERS, ("X-Request-Id", request.exchange_id), ("X-Correlation-ID", "their-id")]


@pytest.mark.parametrize("name", ["Cache-Control", "cache-control", "VARY", "x-request-id", "X-Correlation-Id"])
def test_what_is_given_stays_however_it_is_spelled(name: str) -> None:
    request = arrival({"HTTP_X_CORRELATION_ID": "their-id"})

    missing = [told.lower() for told, _ in request.missing_headers([(name, "given")])]

    assert name.lower() not in missing
    assert len(missing) == len(SECURITY_HEADERS) + 1


def test_production_asks_for_https_ever_after() -> None:
    names = [name for name, _ in arrival(settings=PRODUCTION).missing_headers([])]

    assert names == [*(name for name, _ in SECURITY_HEADERS), "Strict-Transport-Security", "X-Request-Id"]


def test_the_lists_of_two_answers_are_their_own() -> None:
    request = arrival()

    request.missing_headers([]).append(("X-Odd", "1"))

    assert ("X-Odd", "1") not in request.missing_headers([])


def test_an_id_is_made_once() -> None:
    request = arrival()

    assert request.exchange_id == request.exchange_id
    assert request.exchange_id != arrival().exchange_id


def test_an_address_is_worked_out_once_for_each_way_it_comes() -> None:
    house, asked = counting_house()
    ways: list[WSGIEnvironment] = [
        {"REMOTE_ADDR": "192.0.2.1"},
        {"REMOTE_ADDR": "192.0.2.1", "HTTP_X_FORWARDED_FOR": "198.51.100.7"},
        {"REMOTE_ADDR": ""},
    ]

    for _ in range(3):
        for way in ways:
            assert Arrival(way, house).address == way["REMOTE_ADDR"]

    assert asked == [("192.0.2.1", None), ("192.0.2.1", "198.51.100.7"), ("", None)]


def test_a_long_way_is_not_kept() -> None:
    house, asked = counting_house()
    environ = {"REMOTE_ADDR": "192.0.2.1", "HTTP_X_FORWARDED_FOR": "198.51.100.7, " * 5}

    for _ in range(2):
        assert Arrival(environ, house).address == "192.0.2.1"

    assert len(asked) == 2


EDGE = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("peer", ["", "192.0.2.7", None])
def test_the_id_that_nginx_gave_is_known_where_a_trusted_proxy_brought_it(peer: str | None) -> None:
    settings = Settings(admission=AdmissionSettings(trusted_proxies=("192.0.2.0/24",)))
    environ: WSGIEnvironment = {"HTTP_X_EDGE_REQUEST_ID": EDGE}
    if peer is not None:
        environ["REMOTE_ADDR"] = peer

    assert arrival(environ, settings).edge_id == EDGE


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_EDGE_REQUEST_ID": EDGE},
        {"REMOTE_ADDR": "not an address", "HTTP_X_EDGE_REQUEST_ID": EDGE},
        {"REMOTE_ADDR": "", "HTTP_X_EDGE_REQUEST_ID": 'a "quoted" thing'},
        {"REMOTE_ADDR": "", "HTTP_X_EDGE_REQUEST_ID": ""},
        {"REMOTE_ADDR": ""},
    ],
)
def test_nobody_else_gives_a_request_such_an_id(environ: WSGIEnvironment) -> None:
    assert arrival(environ).edge_id is None
