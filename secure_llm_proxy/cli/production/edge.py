"""nginx, asked as a client would: old protocols, the certificate, HSTS, and plain HTTP; and what its files say of its limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from secure_llm_proxy.cli.host.ask import NotAnswered, door_at, headers_of
from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.places import Places
from secure_llm_proxy.cli.host.served import CertificateUnread, distrusted, handshake, refuses_old_protocols
from secure_llm_proxy.cli.host.site import Site, find_site
from secure_llm_proxy.settings import Settings

_CERTIFICATE_DAYS = 21
_HSTS_SECONDS_LEAST = 31_536_000
_PATIENCE_S = 5
_INSTALL = "install deploy/nginx/secure_llm_proxy.conf again: scripts/install"
_RENDER = "let nginx's site follow the settings: /opt/secure_llm_proxy/scripts/install --services-only"
# What the installer lets nginx take above MAX_REQUEST_SIZE.
_BODY_MARGIN_BYTES = 1 << 20
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def edge_checks(settings: Settings, places: Places) -> Iterator[Check]:
    site = find_site(places.machine)
    if site is None:
        yield failed("nginx's site", "none of /etc/nginx/sites-enabled and conf.d is ours", _INSTALL)
        return
    if site.tls is None:
        yield failed("nginx's site", f"{site.path} listens for no TLS", _INSTALL)
        return
    yield ok("nginx's site", f"{site.path}, for {', '.join(site.names) or 'no name'}")
    yield _body_limit(site, settings.limits.body_bytes_max)
    yield from _room(site, places.machine, settings.server.workers * settings.server.worker_connections)
    yield from _protocols(site, *site.tls)
    yield from _certificate(site, *site.tls)
    yield _hsts(site, *site.tls)
    yield _plain(site)


def _body_limit(site: Site, bytes_max: int) -> Check:
    """Both limits, held against each other: the product's has to be met first, and by what nginx has read."""
    what = "largest body"
    found = re.search(r"^\s*client_max_body_size\s+([0-9]+)([kmg]?);", site.text, re.MULTILINE | re.IGNORECASE)
    taken = int(found.group(1)) * _UNITS[found.group(2).lower()] if found else 1 << 20  # nginx's own default
    told = f"MAX_REQUEST_SIZE is {bytes_max}, nginx takes {taken or 'any number of'} bytes"
    if taken and taken < bytes_max:
        return failed(what, f"{told}: it refuses what the product would take", _RENDER)
    if taken != bytes_max + _BODY_MARGIN_BYTES:
        return warning(what, f"{told}: it keeps more in memory than the product will take", _RENDER)
    return ok(what, told)


def _room(site: Site, machine: Path, service: int) -> Iterator[Check]:
    """Whether nginx still has a connection to say 503 with, when all that it may bring to the workers are taken."""
    what = "room for requests"
    found = re.findall(r"^\s*server\s+unix:[^;]*\bmax_conns=([0-9]+)", site.text, re.MULTILINE)
    if not found:
        yield failed(
            what, "nginx brings any number to the workers, and hangs up when it has no connection left", _RENDER
        )
        return
    at_once = sum(int(each) for each in found)
    path = machine / "etc/nginx/nginx.conf"
    try:
        main = path.read_text("utf-8", errors="replace")
    except OSError as error:
        yield unknown(
            what, f"{path}: {error.strerror}", f"hold worker_connections to three times {at_once} at least: nginx -T"
        )
        return
    bare = re.sub(r"(^|\s)#.*$", "", main, flags=re.MULTILINE)
    held = re.search(r"\bworker_connections\s+([0-9]+)\s*;", bare)
    connections = int(held.group(1)) if held else 512  # nginx's own default
    told = f"{at_once} at once for each process of nginx, which holds {connections} connections"
    if 2 * at_once >= connections:
        yield failed(what, f"{told}: two for each request, so none is left to say 503 with", _RENDER)
    elif at_once > service:
        yield warning(what, f"{told}: the workers hold {service}, the others wait unanswered", _RENDER)
    else:
        yield ok(what, told)


def _protocols(site: Site, host: str, port: int) -> Iterator[Check]:
    named = {word for words in re.findall(r"ssl_protocols\s+([^;]+);", site.text) for word in words.split()}
    if weak := sorted(named - {"TLSv1.2", "TLSv1.3"}):
        yield failed("TLS protocols", f"{site.path} offers {', '.join(weak)}", "ssl_protocols TLSv1.2 TLSv1.3;")
        return
    try:
        refused = refuses_old_protocols(host, port, site.name)
    except OSError as error:
        yield failed("TLS protocols", f"nobody answers at {host}:{port}: {error}", "nginx -t; systemctl status nginx")
        return
    if refused is None:
        fix = f"from another machine: nmap --script ssl-enum-ciphers -p {port} {site.name}"
        yield unknown("TLS protocols", "this machine's OpenSSL cannot try TLS 1.1", fix)
    elif not refused:
        yield failed(
            "TLS protocols", "TLS 1.1 or older is accepted", "ssl_protocols TLSv1.2 TLSv1.3; in every server of nginx"
        )
    else:
        yield ok("TLS protocols", "TLS 1.1 and older are refused")


def _certificate(site: Site, host: str, port: int) -> Iterator[Check]:
    try:
        days = handshake(host, port, site.name).days_left
        distrust = distrusted(host, port, site.name)
    except (OSError, CertificateUnread) as error:
        yield failed("certificate", f"no handshake at {host}:{port}: {error}", "nginx -t; systemctl status nginx")
        return
    fix = "renew it (certbot renew, or a new file), then systemctl reload nginx"
    if days <= _CERTIFICATE_DAYS:
        yield failed("certificate", f"{days:.0f} days left, {_CERTIFICATE_DAYS} are the least", fix)
    else:
        yield ok("certificate", f"{days:.0f} days left")
    if distrust is not None:
        fix = (
            "let clients trust its authority, or get one from an authority that they trust (scripts/install --certbot)"
        )
        yield warning("certificate's authority", f"not among those that this machine trusts: {distrust}", fix)
    else:
        yield ok("certificate's authority", f"trusted for {site.name}")


def _hsts(site: Site, host: str, port: int) -> Check:
    door = replace(door_at(f"https://{site.name}", verify=False), connect=(host, port))
    try:
        _, headers = headers_of(door, "/health/live", timeout_s=_PATIENCE_S)
    except NotAnswered as error:
        return failed("HSTS", f"nobody answers at {host}:{port}: {error}", "systemctl status nginx secure_llm_proxy")
    said = headers.get("Strict-Transport-Security", "")
    seconds = re.search(r"max-age=\"?([0-9]+)", said)
    if seconds is None or int(seconds.group(1)) < _HSTS_SECONDS_LEAST:
        return failed("HSTS", said or "no Strict-Transport-Security", _INSTALL)
    return ok("HSTS", said)


def _plain(site: Site) -> Check:
    if site.plain is None:
        return ok("plain HTTP", "not served")
    host, port = site.plain
    door = replace(door_at(f"http://{site.name}"), connect=(host, port))
    try:
        status, headers = headers_of(door, "/v1/models", timeout_s=_PATIENCE_S)
    except NotAnswered as error:
        return failed("plain HTTP", f"nobody answers at {host}:{port}: {error}", "systemctl status nginx")
    to = headers.get("Location", "")
    if status not in {301, 308} or not to.startswith("https://"):
        return failed("plain HTTP", f"port {port} answers {status} instead of leading to https", _INSTALL)
    return ok("plain HTTP", f"port {port} leads to {to.removesuffix('/v1/models')}")
