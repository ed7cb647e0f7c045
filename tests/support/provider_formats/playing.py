"""What all played providers share: a request as it arrived, a reply as it leaves, and how a provider can be made to fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from urllib.parse import parse_qs, unquote

from tests.support.provider_formats.shapes import Misfit, Shape, View

CREATED_S = 1_795_219_200


class Failure(StrEnum):
    """Every way in which a provider's documentation says that it may refuse. A model of the name `fail-…` asks for one."""

    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    NOT_FOUND = "not-found"
    RATE_LIMITED = "rate-limited"
    QUOTA = "quota"
    CONTEXT_LENGTH = "context-length"
    CONTENT_POLICY = "content-policy"
    TOO_LARGE = "too-large"
    OVERLOADED = "overloaded"
    SERVER = "server"
    MID_STREAM = "mid-stream"  # the stream begins and ends in an error; a plain request: SERVER


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request behind its provider's base path: `path` begins with a slash; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: object

    @property
    def view(self) -> View:
        return View(self.body)


@dataclass(frozen=True, slots=True)
class Reply:
    """Either a whole body or the events of a stream, as bytes on the wire."""

    status: int = 200
    body: bytes = b""
    events: Sequence[bytes] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    misfit: Misfit | None = None


class PlayedProvider(Protocol):
    """One provider. `base_path` is what its documented base URL has behind the host."""

    @property
    def name(self) -> str: ...

    @property
    def base_path(self) -> str: ...

    def authorised(self, arrived: Arrived, key: str) -> bool: ...

    def fail(self, failure: Failure, arrived: Arrived) -> Reply:
        """The documented refusal."""
        ...

    def answer(self, arrived: Arrived) -> Reply:
        """The documented answer, or the documented refusal of what does not fit."""
        ...


def json_reply(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, dumped(value), headers=headers or {})


def dumped(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def data_event(value: object) -> bytes:
    return b"data: " + dumped(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    return b"event: " + name.encode() + b"\n" + data_event(value)


def failure_of(model: str) -> Failure | None:
    """The failure that a model's name asks for: `fail-rate-limited`, with or without a prefix such as `openai/`."""
    asked = model.rpartition("/")[2].removeprefix("fail-")
    return Failure(asked) if asked in set(Failure) and "fail-" in model else None


def misfit_of(shape: Shape, body: object) -> Misfit | None:
    return shape.misfit(body, ())


def split_query(target: str) -> tuple[str, dict[str, str]]:
    """Path, percent-decoded, and the last value of every query parameter."""
    path, _, query = target.partition("?")
    return unquote(path), {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}


def bearer(arrived: Arrived, key: str) -> bool:
    return arrived.headers.get("authorization") == f"Bearer {key}"
