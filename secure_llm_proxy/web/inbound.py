"""From a Flask request to an `Inbound`: the last place that knows both."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from urllib.parse import unquote

import gevent
from flask import Request, g, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import (
    ClientGone,
    ErrorCode,
    InvalidRequest,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMedia,
)
from secure_llm_proxy.foundation.identifiers import ExchangeId, new_exchange_id
from secure_llm_proxy.settings import LimitSettings
from secure_llm_proxy.vocabulary.inbound import Inbound
from secure_llm_proxy.web.headers import safe_id
from secure_llm_proxy.web.house import the_house
from secure_llm_proxy.web.presence import ClientWatch

_KEY_IN_TEXT = re.compile(r"slp_(?:live|test|adm)_")
_PERSON_MAX = 256
_CHUNK = 64 * 1024
_CHUNKED_STEP = 2048


def exchange_id_of_request() -> ExchangeId:
    """One id per request, made at its first use: it is the `X-Request-Id` of every answer."""
    if "exchange_id" not in g:
        g.exchange_id = new_exchange_id()
    found: ExchangeId = g.exchange_id
    return found


def client_address() -> str:
    web = the_house()
    return web.address_of(request.environ.get("REMOTE_ADDR") or "", request.headers.get("X-Forwarded-For"))


def inbound_of_request(door: str) -> Inbound:
    web = the_house()
    person = request.headers.get("X-User-ID")
    cancellation = Cancellation()
    g.presence = ClientWatch(request.environ, cancellation)
    return Inbound(
        exchange_id=exchange_id_of_request(),
        door=door,
        address=client_address(),
        user_agent=request.headers.get("User-Agent", ""),
        credentials=_credentials(request, web.settings.identity.api_key_header),
        key_in_url=_has_key_in_url(request),
        started_s=g.get("started_s", time.monotonic()),
        read_body=_body_reader(web.settings.limits, g.presence),
        cancellation=cancellation,
        person=person[:_PERSON_MAX] if person else None,
        session=safe_id(request.headers.get("X-Session-ID")),
        correlation_id=safe_id(request.headers.get("X-Correlation-ID")),
    )


def _has_key_in_url(request: Request) -> bool:
    # The target as it came: path, query, fragment, user part. Escaped once or twice, a key is a key.
    target = str(request.environ.get("RAW_URI") or f"{request.path}?{request.query_string.decode('latin-1')}")
    once = unquote(target)
    return any(_KEY_IN_TEXT.search(text) for text in (target, once, unquote(once)))


def _credentials(request: Request, key_header: str) -> tuple[str, ...]:
    found = []
    authorization = request.headers.get("Authorization", "")
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        found += [value.strip()] if value.strip() else []
    elif authorization:
        # Another scheme, or a bare key: it is somebody's try, so it must not pass for "no key".
        found.append(authorization)
    for name in dict.fromkeys((key_header.lower(), "x-api-key")):
        if value := request.headers.get(name, "").strip():
            found.append(value)
    return tuple(dict.fromkeys(found))


def _body_reader(limits: LimitSettings, presence: ClientWatch) -> Callable[[], bytes]:
    arrived = request._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001  werkzeug's way out of its proxy

    def read_body() -> bytes:
        """The whole body. Raises for a wrong media type, an encoding, too many bytes, or a client too slow."""
        if arrived.mimetype != "application/json" and not arrived.mimetype.endswith("+json"):
            raise UnsupportedMedia("Send the body as JSON, with `Content-Type: application/json`.")
        if arrived.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise UnsupportedMedia(
                "Compressed request bodies are not accepted.", code=ErrorCode.UNSUPPORTED_CONTENT_ENCODING
            )
        if arrived.content_length is not None and arrived.content_length > limits.body_bytes_max:
            raise _too_large(limits)
        try:
            with gevent.Timeout(limits.body_timeout_s):
                body = _read_bounded(arrived, limits)
        except (gevent.Timeout, TimeoutError):
            # The second is the worker's own bound on a socket, SEND_TIMEOUT_S, where that is shorter.
            raise RequestTimeout("The request body did not arrive in time.") from None
        except ClientDisconnected:
            raise ClientGone("The client left before its body was whole.") from None
        except RequestEntityTooLarge:
            raise _too_large(limits) from None
        except (RequestTooLarge, ClientGone):
            raise
        except Exception:  # noqa: BLE001  the worker's parser has its own errors for a body whose chunks are broken
            raise InvalidRequest("The request body is malformed.", code=ErrorCode.MALFORMED_REQUEST) from None
        # Until here bytes were expected; from here on a readable socket tells of the client's leaving.
        presence.start()
        return body

    return read_body


def _read_bounded(arrived: Request, limits: LimitSettings) -> bytes:
    read, size = [], 0
    step = _CHUNK if arrived.content_length is not None else _CHUNKED_STEP
    while chunk := arrived.stream.read(step):
        size += len(chunk)
        if size != arrived.content_length:
            # While bytes keep coming gevent never switches by itself, and nobody else would have a turn.
            gevent.sleep(0)
        if size > limits.body_bytes_max:
            raise _too_large(limits)
        read.append(chunk)
    if arrived.content_length is not None and size != arrived.content_length:
        raise ClientGone("The client left before its body was whole.")
    return b"".join(read)


def _too_large(limits: LimitSettings) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limits.body_bytes_max} bytes.")
