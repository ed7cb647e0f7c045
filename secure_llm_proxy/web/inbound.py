"""From an arrival to the corridor's `Inbound`: credentials, persons, and the body with its limits."""

# ruff: noqa: SIM401  "in", then the item: no call, and most of these headers are mostly absent
from __future__ import annotations

import re
from functools import partial
from io import BytesIO
from urllib.parse import unquote
from wsgiref.types import WSGIEnvironment

import gevent
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.wsgi import get_content_length, get_input_stream

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import (
    ClientGone,
    ErrorCode,
    InvalidRequest,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMedia,
)
from secure_llm_proxy.identity import keys_in
from secure_llm_proxy.settings import LimitSettings
from secure_llm_proxy.vocabulary.inbound import Headers, Inbound, Tags
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.errors import is_anthropic
from secure_llm_proxy.web.headers import safe_id
from secure_llm_proxy.web.presence import Presence

_KEY_IN_TEXT = re.compile(r"slp_(?:live|test|adm|sess|setup|dev)_")
_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TAGS_MAX = 16
_PERSON_MAX = 256
_LENGTH_DIGITS_MAX = 15
_CHUNK = 64 * 1024
_CHUNKED_STEP = 2048
_JSON = "application/json"


def inbound_of(arrival: Arrival, door: str, presence: Presence, cancellation: Cancellation) -> Inbound:
    """What the corridor may know. `presence` watches the client from the moment its body is read."""
    environ = arrival.environ
    web = arrival.web
    person = environ["HTTP_X_USER_ID"] if "HTTP_X_USER_ID" in environ else None
    target: str = environ["RAW_URI"] if "RAW_URI" in environ else ""
    key_in_url = (not target or "%" in target or "slp_" in target) and _has_key_in_url(environ)
    return Inbound(
        exchange_id=arrival.exchange_id,
        door=door,
        address=arrival.address,
        user_agent=environ["HTTP_USER_AGENT"] if "HTTP_USER_AGENT" in environ else "",
        credentials=credentials_of(environ, web.key_variables),
        key_in_url=key_in_url,
        started_s=arrival.started_s,
        read_body=partial(read_body, environ, web.settings.limits, presence),
        cancellation=cancellation,
        person=person[:_PERSON_MAX] if person else None,
        session=safe_id(environ["HTTP_X_SESSION_ID"]) if "HTTP_X_SESSION_ID" in environ else None,
        correlation_id=arrival.correlation_id if "HTTP_X_CORRELATION_ID" in environ else None,
        keys_in_url=_keys_in_url(environ) if key_in_url else (),
        passed_headers=_passed(environ, door)
        if "HTTP_ANTHROPIC_VERSION" in environ or "HTTP_ANTHROPIC_BETA" in environ
        else (),
        tags=_tags_of(environ["HTTP_X_SLP_REQUIRE"]) if "HTTP_X_SLP_REQUIRE" in environ else (),
        hang_up=presence.hang_up,
        edge_id=arrival.edge_id if "HTTP_X_EDGE_REQUEST_ID" in environ else None,
    )


def _passed(environ: WSGIEnvironment, door: str) -> Headers:
    """The version is that of a body which the client wrote: what comes to other doors is written by us."""
    passed: Headers = ()
    if "HTTP_ANTHROPIC_BETA" in environ:
        passed = (("anthropic-beta", environ["HTTP_ANTHROPIC_BETA"]),)
    if "HTTP_ANTHROPIC_VERSION" in environ and is_anthropic(door):
        passed += (("anthropic-version", environ["HTTP_ANTHROPIC_VERSION"]),)
    return passed


def _tags_of(header: str) -> Tags | None:
    """`region=eu, data=restricted`; None for anything else: a wish for where data may go is never overlooked."""
    tags: list[tuple[str, str]] = []
    for wish in header.split(","):
        name, _, value = (part.strip() for part in wish.partition("="))
        if not (_TAG.fullmatch(name) and _TAG.fullmatch(value)) or len(tags) >= _TAGS_MAX:
            return None
        tags.append((name, value))
    return tuple(tags)


def _has_key_in_url(environ: WSGIEnvironment) -> bool:
    return any("slp_" in text and _KEY_IN_TEXT.search(text) for text in _readings_of_url(environ))


def _keys_in_url(environ: WSGIEnvironment) -> tuple[str, ...]:
    return keys_in("\n".join(_readings_of_url(environ)))


def _readings_of_url(environ: WSGIEnvironment) -> tuple[str, ...]:
    # The target as it came: path, query, fragment, user part. Escaped once or twice, a key is a key.
    target: str = environ.get("RAW_URI") or f"{environ.get('PATH_INFO', '')}?{environ.get('QUERY_STRING', '')}"
    if "%" not in target:
        return (target,)
    once = unquote(target)
    return target, once, unquote(once)


def credentials_of(environ: WSGIEnvironment, key_variables: tuple[str, ...]) -> tuple[str, ...]:
    """Every different value of Authorization and of the headers in which a bare credential may stand."""
    found: list[str] = []
    authorization: str = environ["HTTP_AUTHORIZATION"] if "HTTP_AUTHORIZATION" in environ else ""
    if authorization[:7] == "Bearer ":
        if value := authorization[7:].strip():
            found += (value,)
    elif authorization:
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() != "bearer":
            # Another scheme, or a bare key: it is somebody's try, so it must not pass for "no key".
            found.append(authorization)
        elif value := value.strip():
            found.append(value)
    for variable in key_variables:
        if variable in environ and (given := environ[variable].strip()):
            found += (given,)
    return tuple(dict.fromkeys(found)) if len(found) > 1 else tuple(found)


def read_body(environ: WSGIEnvironment, limits: LimitSettings, presence: Presence | None) -> bytes:
    """The whole body. Raises for a wrong media type, an encoding, too many bytes, or a client too slow."""
    if "CONTENT_TYPE" not in environ or (environ["CONTENT_TYPE"] != _JSON and not _is_json(environ["CONTENT_TYPE"])):
        raise UnsupportedMedia("Send the body as JSON, with `Content-Type: application/json`.")
    if "HTTP_CONTENT_ENCODING" in environ and environ["HTTP_CONTENT_ENCODING"].strip().lower() != "identity":
        raise UnsupportedMedia(
            "Compressed request bodies are not accepted.", code=ErrorCode.UNSUPPORTED_CONTENT_ENCODING
        )
    length = _length_of(environ)
    if length is not None and length > limits.body_bytes_max:
        raise _too_large(limits)
    source = environ["wsgi.input"]
    if length is not None and type(source) is BytesIO:
        # Our worker has it all in memory: nothing to wait for, so no timer, which would cost 5 µs.
        body: bytes = source.read(length)
        if len(body) != length:
            raise _left()
    else:
        body = _read_in_time(environ, length, limits)
    # Until here bytes were expected; from here on a readable socket tells of the client's leaving.
    if presence is not None:
        presence.start()
    return body


def _length_of(environ: WSGIEnvironment) -> int | None:
    if "CONTENT_LENGTH" in environ and "HTTP_TRANSFER_ENCODING" not in environ:
        told: str = environ["CONTENT_LENGTH"]
        # As werkzeug reads it in eight calls. In a WSGI environ, which is latin-1, these are the ASCII digits.
        if told.isdecimal() and not told[_LENGTH_DIGITS_MAX:]:
            return int(told)
    return get_content_length(environ)


def _is_json(content_type: str) -> bool:
    media_type = parse_options_header(content_type)[0].lower()
    return media_type == _JSON or media_type.endswith("+json")


def _read_in_time(environ: WSGIEnvironment, length: int | None, limits: LimitSettings) -> bytes:
    try:
        # As an `Exception`: gunicorn's body keeps in mind that its reading broke off, and never takes what still comes of it
        # for a request. It does not see a `BaseException`, which `gevent.Timeout` is by itself.
        with gevent.Timeout(limits.body_timeout_s, TimeoutError()):
            return _read_bounded(environ, length, limits)
    except TimeoutError:
        # Ours, or the worker's own bound on a socket, SEND_TIMEOUT_S, where that is shorter.
        raise RequestTimeout("The request body did not arrive in time.") from None
    except ClientDisconnected:
        raise _left() from None
    except RequestEntityTooLarge:
        raise _too_large(limits) from None
    except (RequestTooLarge, ClientGone):
        raise
    except Exception:  # noqa: BLE001  the worker's parser has its own errors for a body whose chunks are broken
        raise InvalidRequest("The request body is malformed.", code=ErrorCode.MALFORMED_REQUEST) from None


def _read_bounded(environ: WSGIEnvironment, length: int | None, limits: LimitSettings) -> bytes:
    stream = get_input_stream(environ)
    read, size = [], 0
    step = _CHUNK if length is not None else _CHUNKED_STEP
    while chunk := stream.read(step):
        size += len(chunk)
        if size != length:
            # While bytes keep coming gevent never switches by itself, and nobody else would have a turn.
            gevent.sleep(0)
        if size > limits.body_bytes_max:
            raise _too_large(limits)
        read.append(chunk)
    if length is not None and size != length:
        raise _left()
    return b"".join(read)


def _left() -> ClientGone:
    return ClientGone("The client left before its body was whole.")


def _too_large(limits: LimitSettings) -> RequestTooLarge:
    return RequestTooLarge(f"The request body is larger than {limits.body_bytes_max} bytes.")
