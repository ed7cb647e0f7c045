"""What a TLS server shows: its certificate, by a handshake of our own, and until when it is valid."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _CONTEXT_0, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_PATIENCE_S = 5.0


class CertificateUnread(ValueError):
    """These bytes are no certificate. Says why."""


@dataclass(frozen=True, slots=True)
class Served:
    """The certificate (DER) as the server showed it, unverified, and the protocol that was agreed on."""

    certificate: bytes
    protocol: str

    @property
    def days_left(self) -> float:
        return days_left(self.certificate)


def handshake(host: str, port: int, name: str, *, timeout_s: float = _PATIENCE_S) -> Served:
    """Shake hands as a client that asks for `name`. Raises `OSError` (`ssl.SSLError` is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Only looked at: whether clients would trust it is told by its days, and by who verifies it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout_s) as connection,
        context.wrap_socket(connection, server_hostname=name) as tls,
    ):
        return Served(tls.getpeercert(binary_form=True) or b"", tls.version() or "")


def distrusted(host: str, port: int, name: str, *, timeout_s: float = _PATIENCE_S) -> str | None:
    """Why a client of this machine refuses the certificate for `name`; None when it trusts it. Raises `OSError`."""
    context = ssl.create_default_context()
    with socket.create_connection((host, port), timeout_s) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=name):
                return None
        except ssl.SSLCertVerificationError as error:
            return error.verify_message


def refuses_old_protocols(host: str, port: int, name: str, *, timeout_s: float = _PATIENCE_S) -> bool | None:
    """Whether the server refuses TLS 1.0 and 1.1; None when that cannot be found out. Raises `OSError` where nobody listens."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # Our own library must be willing to, else its refusal would be taken for the server's.
        with contextlib.suppress(ssl.SSLError, ValueError):
            context.set_ciphers("ALL:@SECLEVEL=0")
        try:
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        except ValueError:
            return None
        with socket.create_connection((host, port), timeout_s) as connection:
            try:
                with context.wrap_socket(connection, server_hostname=name):
                    return False
            except ssl.SSLError as error:
                said = (error.reason or "").upper()
                return True if "ALERT" in said or "UNEXPECTED_EOF" in said else None
            except ConnectionResetError:
                return True


def certificate_in(path: Path) -> bytes:
    """The first certificate of a PEM file, DER: the leaf. Raises `OSError`, `CertificateUnread`."""
    found = _PEM.search(path.read_bytes())
    if found is None:
        raise CertificateUnread("holds no certificate in PEM")
    try:
        return ssl.PEM_cert_to_DER_cert(found.group().decode("ascii", "replace"))
    except ValueError as error:
        raise CertificateUnread("holds a certificate that is not base64") from error


def days_left(certificate: bytes, now: datetime | None = None) -> float:
    """Days until the certificate's end; negative behind it. Raises `CertificateUnread`."""
    return (end_of(certificate) - (now or datetime.now(UTC))).total_seconds() / 86_400


def end_of(certificate: bytes) -> datetime:
    """`notAfter` (RFC 5280 §4.1). The standard library reads it only of certificates that it has verified."""
    try:
        _, body, _ = _element(certificate, 0)
        _, signed, _ = _element(certificate, body)
        position = signed
        tag, content, end = _element(certificate, position)
        if tag == _CONTEXT_0:
            position = end
        for _ in range(3):  # serial number, algorithm, issuer
            _, _, position = _element(certificate, position)
        tag, validity, _ = _element(certificate, position)
        _, _, after_first = _element(certificate, validity)
        kind, content, end = _element(certificate, after_first)
        text = certificate[content:end].decode("ascii")
        if tag != _SEQUENCE or kind not in {_UTC_TIME, _GENERALIZED_TIME}:
            raise CertificateUnread("is no certificate")
        if kind == _UTC_TIME:
            # RFC 5280: 50 to 99 are of the last century.
            text = ("19" if text[:2] >= "50" else "20") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (IndexError, UnicodeDecodeError) as error:
        raise CertificateUnread("is no certificate") from error
    except ValueError as error:
        raise CertificateUnread(str(error) or "is no certificate") from error


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag, where the content begins, and where the element ends."""
    tag, length, content = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[content : content + count], "big")
        content += count
    if content + length > len(der):
        raise CertificateUnread("ends too early")
    return tag, content, content + length
