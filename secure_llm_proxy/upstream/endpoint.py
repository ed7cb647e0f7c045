"""Where the provider lives, read once from its URL."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from secure_llm_proxy.foundation.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

_CHAT_PATH = "/chat/completions"
_TARGET = re.compile(r"[!-~]*")
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`base_path` has no slash at its end; `query` is what the operator put behind a `?` (some providers keep their API
    version there) and goes with every request.
    """

    host: str
    port: int
    secure: bool
    base_path: str
    query: str

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT["https" if self.secure else "http"] else f"{host}:{self.port}"

    @property
    def is_literal(self) -> bool:
        """True when `host` is an IP address, so that no name is looked up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def target(self, path: str) -> str:
        """The request target of one of our constant paths."""
        return self.base_path + path + (f"?{self.query}" if self.query else "")


def parse_endpoint(url: str | None, *, where: str = "LLM_API_URL") -> Endpoint:
    """Read a base URL; one that ends in `/chat/completions` is understood too. Raises `OperatorError`, which names `where`."""
    if not url:
        raise OperatorError(f"{where} is not set: no provider can be reached. Set it to the provider's base URL.")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if not _is_ipv6(parts.hostname) else parts.hostname
    except ValueError:  # a port out of range, broken brackets, a name that IDNA refuses
        raise OperatorError(f"{where} is not a URL. Example: https://api.openai.com/v1") from None
    if parts.scheme not in _DEFAULT_PORT or not host or not _TARGET.fullmatch(host):
        raise OperatorError(f"{where} must look like https://host[:port]/path, with http or https.")
    if parts.username is not None or parts.password is not None:
        raise OperatorError(f"{where} must not hold a user name or password; the key has a place of its own.")
    if not _TARGET.fullmatch(parts.path + parts.query):
        raise OperatorError(f"{where}'s path must be plain ASCII without spaces (percent-encode the rest).")
    return Endpoint(
        host=host,
        port=port if port is not None else _DEFAULT_PORT[parts.scheme],
        secure=parts.scheme == "https",
        base_path=parts.path.rstrip("/").removesuffix(_CHAT_PATH).rstrip("/"),
        query=parts.query,
    )


def tls_context(*, verify: bool, ca_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer; the certificate must be valid for the host, by the system's authorities or only by `ca_file`.

    Made by hand, because `ssl.create_default_context` writes session secrets to a file when SSLKEYLOGFILE is set.
    Raises `OperatorError` when `ca_file` can't be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
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


def _is_ipv6(host: str | None) -> bool:
    return host is not None and ":" in host
