"""The browser's session cookie: which name it has, when it is believed, how it is set and taken away.

`__Host-slp_sid; Secure; HttpOnly; SameSite=Strict; Path=/`. Only a development proxy that a browser reaches directly over
plain HTTP on loopback gets another: `slp_sid`, without `Secure`, because not every browser stores a `Secure` cookie of
http://127.0.0.1, and none a `__Host-` one without it. In production, and wherever a proxy or another machine is involved,
there is no such relaxation. Source: RFC 6265bis §4.1.3 (draft 20), ASVS 5.0 3.3.1 to 3.3.4.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from flask import Response, request

from secure_llm_proxy.web.arrival import Arrival

if TYPE_CHECKING:
    from datetime import datetime

SECURE_NAME = "__Host-slp_sid"
LOOPBACK_NAME = "slp_sid"
DEVICE_SECURE_NAME = "__Host-slp_device"
DEVICE_LOOPBACK_NAME = "slp_device"
_LONGEST = 256


def is_plain_loopback(arrival: Arrival) -> bool:
    """Whether the peer itself is a client on this machine, of a proxy that is not run in production."""
    if arrival.web.settings.is_production or "HTTP_X_FORWARDED_FOR" in arrival.environ:
        return False
    try:
        return ipaddress.ip_address(arrival.environ.get("REMOTE_ADDR") or "").is_loopback
    except ValueError:
        return False


def cookie_names(arrival: Arrival) -> tuple[str, str]:
    """Names of the session's cookie and of the device's."""
    if is_plain_loopback(arrival):
        return LOOPBACK_NAME, DEVICE_LOOPBACK_NAME
    return SECURE_NAME, DEVICE_SECURE_NAME


def session_cookie(arrival: Arrival) -> str | None:
    """The session's secret as the browser sent it. None where there is none, or where one name stands there twice."""
    return _only(cookie_names(arrival)[0])


def device_cookie(arrival: Arrival) -> str | None:
    return _only(cookie_names(arrival)[1])


def set_session_cookie(response: Response, arrival: Arrival, secret: str) -> None:
    """Kept until the browser is closed; the server ends the session earlier."""
    _set(response, arrival, cookie_names(arrival)[0], secret, None)


def set_device_cookie(response: Response, arrival: Arrival, secret: str, expires_at: datetime | None) -> None:
    _set(response, arrival, cookie_names(arrival)[1], secret, expires_at)


def delete_session_cookie(response: Response, arrival: Arrival) -> None:
    name = cookie_names(arrival)[0]
    response.delete_cookie(name, path="/", secure=not is_plain_loopback(arrival), httponly=True, samesite="Strict")


def _set(response: Response, arrival: Arrival, name: str, value: str, expires_at: datetime | None) -> None:
    response.set_cookie(
        name,
        value,
        expires=expires_at,
        path="/",
        secure=not is_plain_loopback(arrival),
        httponly=True,
        samesite="Strict",
    )


def _only(name: str) -> str | None:
    # Two cookies of one name: somebody put a second one there (by a path or a subdomain), and which is ours can't be told.
    values = request.cookies.getlist(name)
    return values[0] if len(values) == 1 and 0 < len(values[0]) <= _LONGEST else None
