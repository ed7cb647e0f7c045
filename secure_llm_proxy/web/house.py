"""What the doors are given: the corridor's house and what the operators' pages show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flask import Flask, current_app

from secure_llm_proxy.gateway import House
from secure_llm_proxy.settings import Settings

_EXTENSION = "secure_llm_proxy"


@dataclass(frozen=True, slots=True)
class WebHouse:
    """`troubles` asks every part for a sentence, None where all is well; `relaxed` is each weakened setting and why."""

    house: House
    settings: Settings
    address_of: Callable[[str, str | None], str]
    troubles: Mapping[str, Callable[[], str | None]]
    security_status: Callable[[], dict[str, object]]
    render_metrics: Callable[[], tuple[bytes, str]]
    relaxed: tuple[tuple[str, str], ...]


def attach(app: Flask, web_house: WebHouse) -> None:
    app.extensions[_EXTENSION] = web_house


def the_house() -> WebHouse:
    found = current_app.extensions[_EXTENSION]
    if not isinstance(found, WebHouse):
        raise TypeError("create_app() did not attach the house")
    return found
