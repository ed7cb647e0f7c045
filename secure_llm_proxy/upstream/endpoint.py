"""Where the provider lives, read once from its URL."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.upstream.destinations import Destinations, OwnHosts, is_name

if TYPE_CHECKING:
    from pathlib import Path

_CHAT_PATH = "/chat/completions"
_TARGET = re.compile(r"[!-~]*")
_BRACKETED = re.compile(r"\[[^\[\]@]*\](?::[0-9]*)?")
_DEFAULT_PORT = {"http": 80, "https": 443}
_NO_OWN_HOSTS = OwnHosts()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`host` is a name in lower case or an IP address in its one spelling. `base_path` has no slash at its end; `query` is
    what the operator put behind a `?` (some providers keep their API version there) and goes with every request.
    """

    host: str
    port: int
    secure: bool
    base_path: str
    query: str
    own_hosts: OwnHosts = _NO_OWN_HOSTS

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT["https" if self.secure else "http"] else f"{host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """True when `host` is an IP address, so that no name is looked up."""
        return _is_address(self.host)

    @property
    def destinations(self) -> Destinations:
        """Where its name may lead. An address in the URL itself is the operator's word, and needs no leave."""
        return Destinations(self.host, plain=not self.secure, own=self.own_hosts)

    def target(self, path: str) -> str:
        """The request target of one of our constant paths, which may bring a query of its own."""
        mark = "&" if "?" in path else "?"
        return self.base_path + path + (f"{mark}{self.query}" if self.query else "")


def parse_endpoint(url: str | None, own_hosts: OwnHosts = _NO_OWN_HOSTS, *, where: str = "LLM_API_URL") -> Endpoint:
    """Read a base URL; one that ends in `/chat/completions` is understood too.

    Raises `OperatorError`, which names `where`, also for a host that two readers could take for different ones: an IPv4 address in another
    spelling (decimal, octal, hexadecimal, shortened), an IPv6 address with a zone.
    """
    if not url:
        raise OperatorError(f"{where} is not set: no provider can be reached. Set it to the provider's base URL.")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = _read_host(parts.hostname or "", parts.netloc)
    except ValueError:  # a port out of range, broken brackets, a name that IDNA refuses
        raise OperatorError(f"{where} is not a URL. Example: https://api.openai.com/v1") from None
    if parts.scheme not in _DEFAULT_PORT or not host or port == 0 or not url.strip().isprintable():
        raise OperatorError(f"{where} must look like https://host[:port]/path, with http or https.")
    if parts.username is not None or parts.password is not None:
        raise OperatorError(f"{where} must not hold a user name or password; the key has a place of its own.")
    if not _TARGET.fullmatch(parts.path + parts.query):
        raise OperatorError(f"{where}: its path must be plain ASCII without spaces (percent-encode the rest).")
    if not (_is_address(host) or is_name(host)):
        raise OperatorError(
            f"{where}: its host is neither a name nor an IP address in its usual form, such as 10.0.0.7 or [fd00::7]."
        )
    return Endpoint(
        host=host,
        port=port if port is not None else _DEFAULT_PORT[parts.scheme],
        secure=parts.scheme == "https",
        base_path=parts.path.rstrip("/").removesuffix(_CHAT_PATH).rstrip("/"),
        query=parts.query,
        own_hosts=own_hosts,
    )


def tls_context(*, verify: bool, ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer; the certificate must be valid for the host, by the system's authorities or only by `ca_file`.

    Made by hand, because `ssl.create_default_context` writes session secrets to a file when SSLKEYLOGFILE is set.
    Raises `OperatorError` when `ca_file` can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # Debian 12's Python (3.11.2) sets it: whoever cuts the line could end an answer that goes on until the close
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(["http/1.1"])
    # names stand in subjectAltName alone (RFC 9525 §2); by default a common name would do where no DNS name stands there
    context.hostname_checks_common_name = False
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ValueError) as error:
            raise OperatorError(
                f"LLM_CA_FILE ({ca_file}) can't be read as PEM certificates: {error}. Correct the path or the file."
            ) from None
    return context


def _read_host(host: str, authority: str) -> str:
    """In the one spelling that is looked up, connected to, sent and verified. Raises `ValueError`."""
    if _BRACKETED.fullmatch(authority):
        return str(ipaddress.IPv6Address(host))
    if "[" in authority or "]" in authority:
        raise ValueError(authority)
    return host.encode("idna").decode("ascii").lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    # a zone means nothing outside the machine that wrote it (WHATWG URL, §3.5), and no certificate holds one
    return "%" not in host
