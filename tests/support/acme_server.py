"""A certificate authority that is asked by ACME (RFC 8555), as certbot asks Let's Encrypt: over HTTP, for one account.

It proves a name by fetching the token from port 80 of whom the name leads to (section 8.3), and signs what is asked for
afterwards. It can refuse to.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import secrets
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_FETCH_PATIENCE_S = 20.0
_PENDING, _VALID, _INVALID = "pending", "valid", "invalid"


@dataclass(slots=True)
class _Order:
    names: list[str]
    tokens: list[str]
    proven: dict[str, str] = field(default_factory=dict)  # name -> status
    issued: bytes = b""

    @property
    def status(self) -> str:
        if self.issued:
            return _VALID
        states = [self.proven.get(name, _PENDING) for name in self.names]
        if _INVALID in states:
            return _INVALID
        return "ready" if set(states) == {_VALID} else _PENDING


class AcmeServer:
    """`with AcmeServer(address) as authority:` serves `authority.directory` until the block ends. While `refuses`, no proof of
    a name is good enough. `issued` are the certificates it signed, `contacts` what the account named.
    """

    def __init__(self, address: str) -> None:
        self.refuses = False
        self.issued: list[x509.Certificate] = []
        self.contacts: list[str] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._own_certificate()
        self._thumbprint = ""
        self._orders: list[_Order] = []
        authority = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(authority.directory_members())

            def do_HEAD(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = authority.answer(self.path, _decoded(sent["protected"]), _decoded(sent["payload"]))
                self._answer(*answer)

            def _answer(
                self, told: dict[str, Any] | bytes, status: int = 200, headers: dict[str, str] | None = None
            ) -> None:
                body = told if isinstance(told, bytes) else json.dumps(told).encode()
                self.send_response(status)
                kind = "application/pem-certificate-chain" if isinstance(told, bytes) else "application/json"
                if status >= http.client.BAD_REQUEST:
                    kind = "application/problem+json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Replay-Nonce", secrets.token_urlsafe(16))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  http.server's name
                """Nobody reads it."""

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._base = f"http://{address}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)

    @property
    def directory(self) -> str:
        return f"{self._base}/directory"

    @property
    def authority_pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def directory_members(self) -> dict[str, Any]:
        paths = {"newNonce": "nonce", "newAccount": "account", "newOrder": "order", "revokeCert": "revocation"}
        return {name: f"{self._base}/{path}" for name, path in paths.items()}

    def answer(
        self, path: str, protected: dict[str, Any], payload: dict[str, Any]
    ) -> tuple[dict[str, Any] | bytes, int, dict[str, str]]:
        what, _, which = path.strip("/").partition("/")
        number, _, more = which.partition("/")
        if what == "account":
            self._thumbprint = _thumbprint(protected["jwk"])
            self.contacts = payload.get("contact", [])
            return {"status": _VALID, "contact": self.contacts}, 201, {"Location": f"{self._base}/account/1"}
        if what == "order" and not which:
            names = [each["value"] for each in payload["identifiers"]]
            self._orders.append(_Order(names, [secrets.token_urlsafe(16) for _ in names]))
            number = str(len(self._orders) - 1)
            return self._order(int(number)), 201, {"Location": f"{self._base}/order/{number}"}
        order = self._orders[int(number)]
        if what == "order" and more == "finalize":
            order.issued = self._issue(payload["csr"], order.names)
        if what == "order":
            return self._order(int(number)), 200, {}
        if what == "certificate":
            return order.issued, 200, {}
        if what == "challenge":
            self._prove(order, int(more))
            up = f'<{self._base}/authorization/{number}/{more}>;rel="up"'
            return self._challenge(order, number, int(more)), 200, {"Link": up}
        at = int(more)
        return (
            {
                "status": order.proven.get(order.names[at], _PENDING),
                "identifier": {"type": "dns", "value": order.names[at]},
                "challenges": [self._challenge(order, number, at)],
            },
            200,
            {},
        )

    def _order(self, number: int) -> dict[str, Any]:
        order = self._orders[number]
        base = f"{self._base}/order/{number}"
        told = {
            "status": order.status,
            "identifiers": [{"type": "dns", "value": name} for name in order.names],
            "authorizations": [f"{self._base}/authorization/{number}/{at}" for at in range(len(order.names))],
            "finalize": f"{base}/finalize",
        }
        return told | ({"certificate": f"{self._base}/certificate/{number}"} if order.issued else {})

    def _challenge(self, order: _Order, number: str, at: int) -> dict[str, Any]:
        status = order.proven.get(order.names[at], _PENDING)
        told: dict[str, Any] = {
            "type": "http-01",
            "url": f"{self._base}/challenge/{number}/{at}",
            "token": order.tokens[at],
            "status": status,
        }
        if status == _INVALID:
            told["error"] = {"type": "urn:ietf:params:acme:error:unauthorized", "detail": "the token was not there"}
        return told

    def _prove(self, order: _Order, at: int) -> None:
        name, token = order.names[at], order.tokens[at]
        connection = http.client.HTTPConnection(name, 80, timeout=_FETCH_PATIENCE_S)
        try:
            connection.request("GET", f"/.well-known/acme-challenge/{token}")
            found = connection.getresponse().read().strip().decode("ascii", "replace")
        except OSError:
            found = ""
        finally:
            connection.close()
        good = found == f"{token}.{self._thumbprint}" and not self.refuses
        order.proven[name] = _VALID if good else _INVALID

    def _issue(self, asked: str, names: list[str]) -> bytes:
        request = x509.load_der_x509_csr(_bytes(asked))
        certificate = self._builder("", request.public_key(), self._certificate.subject)
        certificate = certificate.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        signed = certificate.sign(self._key, hashes.SHA256())
        self.issued.append(signed)
        return signed.public_bytes(serialization.Encoding.PEM) + self.authority_pem.encode("ascii")

    def _own_certificate(self) -> x509.Certificate:
        return self._builder("Test ACME authority", self._key.public_key(), None).sign(self._key, hashes.SHA256())

    def _builder(
        self, subject: str, key: CertificatePublicKeyTypes, issuer: x509.Name | None
    ) -> x509.CertificateBuilder:
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(issuer if issuer is not None else own)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _decoded(text: str) -> dict[str, Any]:
    told = json.loads(_bytes(text) or b"{}")
    assert isinstance(told, dict)
    return told


def _thumbprint(key: dict[str, str]) -> str:
    """RFC 7638."""
    members = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y")}[key["kty"]]
    canonical = json.dumps({name: key[name] for name in members}, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).rstrip(b"=").decode("ascii")
