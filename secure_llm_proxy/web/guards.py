"""Who may open a door that stands outside the corridor, and by which host name the doors are reached."""

from __future__ import annotations

import hmac
import ipaddress
import re

from secure_llm_proxy.foundation.errors import AuthenticationFailed, Misdirected, PermissionDenied
from secure_llm_proxy.web.arrival import Arrival

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?\Z")
_INTERNAL = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))


def check_host(arrival: Arrival) -> None:
    """Raises `Misdirected` for a host name that SERVER_NAMES does not list."""
    names = arrival.web.settings.limits.server_names
    if not names:
        return
    told = _HOST.match(arrival.environ.get("HTTP_HOST", ""))
    host = told[1].lower() if told else ""
    if not any(host == name.lower() or (name.startswith("*.") and host.endswith(name[1:].lower())) for name in names):
        raise Misdirected("This server does not answer for that host name.")


def check_internal(arrival: Arrival) -> None:
    """Raises `PermissionDenied` outside loopback and private networks."""
    address = ipaddress.ip_address(arrival.address)
    if not address.is_loopback and not any(address in network for network in _INTERNAL):
        raise PermissionDenied("This endpoint is open to the internal network only.")


def check_metrics_access(arrival: Arrival) -> None:
    """Raises `AuthenticationFailed` without METRICS_TOKEN, except on loopback."""
    if ipaddress.ip_address(arrival.address).is_loopback:
        return
    token = arrival.web.settings.telemetry.metrics_token
    given: str = arrival.environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ").strip()
    if token is None or not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise AuthenticationFailed("Metrics are open to loopback, or to the bearer token METRICS_TOKEN.")
