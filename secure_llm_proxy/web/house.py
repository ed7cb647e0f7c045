"""What the doors are given: the corridor's house and what the operators' pages show."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from flask import Flask, current_app

from secure_llm_proxy.gateway import House
from secure_llm_proxy.settings import Settings
from secure_llm_proxy.web.headers import fixed_headers

_ADDRESSES_KEPT = 1024
_EXTENSION = "secure_llm_proxy"


class Lacking(NamedTuple):
    """What an answer with headers of certain names lacks of those that every answer carries."""

    headers: tuple[tuple[str, str], ...]
    request_id: bool
    correlation_id: bool


@dataclass(frozen=True, slots=True)
class WebHouse:
    """`troubles` asks every part for a sentence, None where all is well; `relaxed` is each weakened setting and why;
    `providers` tells the state of each in a word. `is_proxy` says of a socket's address whether what it tells of a request's
    way is believed.

    Worked out once: `known_address_of` is `address_of` with a memory (3 µs less a request); `headers` are those that every
    answer carries alike, `lacking` is filled by `Arrival`; `key_variables` are the names in a WSGI environ under which a
    bare API key or session token may stand.
    """

    house: House
    settings: Settings
    address_of: Callable[[str, str | None], str]
    troubles: Mapping[str, Callable[[], str | None]]
    security_status: Callable[[], dict[str, object]]
    render_metrics: Callable[[], tuple[bytes, str]]
    relaxed: tuple[tuple[str, str], ...]
    providers: Callable[[], Mapping[str, str]] = dict
    is_proxy: Callable[[str], bool] = operator.not_
    known_address_of: Callable[[str, str | None], str] = field(init=False)
    headers: tuple[tuple[str, str], ...] = field(init=False)
    lacking: dict[tuple[str, ...], Lacking] = field(init=False)
    key_variables: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys((self.settings.identity.api_key_header.lower(), "x-api-key", "x-session-token"))
        variables = tuple("HTTP_" + name.upper().replace("-", "_") for name in names)
        object.__setattr__(self, "known_address_of", lru_cache(maxsize=_ADDRESSES_KEPT)(self.address_of))
        object.__setattr__(self, "headers", fixed_headers(production=self.settings.is_production))
        object.__setattr__(self, "lacking", {})
        object.__setattr__(self, "key_variables", variables)


def attach(app: Flask, web_house: WebHouse) -> None:
    app.extensions[_EXTENSION] = web_house


def the_house() -> WebHouse:
    found = current_app.extensions[_EXTENSION]
    if not isinstance(found, WebHouse):
        raise TypeError("create_app() did not attach the house")
    return found
