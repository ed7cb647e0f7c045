"""A certificate authority for one test run, and what it signs: a leaf for localhost that is no authority itself."""

from __future__ import annotations

import ipaddress
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.programs import find_program

_LEAF_EXTENSIONS = """\
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of a server certificate, its key, and the authority that clients must trust."""

    certificate: Path
    key: Path
    authority: Path


def make_certificate(
    directory: Path, *, names: str = "DNS:localhost,IP:127.0.0.1,IP:::1", days: int = 2
) -> Certificate:
    """Write an authority and a leaf for `names` (OpenSSL's subjectAltName syntax) into `directory`; both live so many days."""
    directory.mkdir(parents=True, exist_ok=True)
    authority, authority_key = directory / "authority.pem", directory / "authority.key"
    request, leaf, leaf_key = directory / "leaf.csr", directory / "leaf.pem", directory / "leaf.key"
    extensions = directory / "leaf.ext"
    extensions.write_text(_LEAF_EXTENSIONS.format(names=names), "utf-8")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl(
        "req", "-x509", *new_key, "-days", str(days), "-subj", "/CN=Test authority",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", authority_key, "-out", authority,
    )  # fmt: skip
    _openssl("req", *new_key, "-subj", "/CN=localhost", "-keyout", leaf_key, "-out", request)
    _openssl(
        "x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial",
        "-days", str(days), "-extfile", extensions, "-out", leaf,
    )  # fmt: skip
    return Certificate(certificate=leaf, key=leaf_key, authority=authority)


def make_faulty_certificate(
    directory: Path,
    *,
    names: tuple[str, ...] = ("localhost",),
    days: tuple[int, int] = (-1, 1),
    authority_days: tuple[int, int] = (-30, 30),
    for_servers: bool = True,
    signed_by_leaf: bool = False,
) -> Certificate:
    """A certificate that a careful client must refuse for one reason. `days` are its first and last, counted from now.

    `signed_by_leaf` puts a certificate that is no authority between the authority and it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    root_key, middle_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = _signed("Test authority", root_key, None, root_key, authority_days, authority=True)
    middle = _signed("A leaf", middle_key, root, root_key, (-1, 1), names=("leaf.example",))
    issuer, issuer_key = (middle, middle_key) if signed_by_leaf else (root, root_key)
    leaf = _signed("localhost", leaf_key, issuer, issuer_key, days, names=names, for_servers=for_servers)
    certificate = Certificate(directory / "leaf.pem", directory / "leaf.key", directory / "authority.pem")
    chain = [leaf, middle] if signed_by_leaf else [leaf]
    certificate.certificate.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))
    certificate.authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    certificate.key.write_bytes(
        leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate


def _signed(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: tuple[int, int],
    *,
    names: tuple[str, ...] = (),
    authority: bool = False,
    for_servers: bool = True,
) -> x509.Certificate:
    own_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    first, last = (datetime.now(UTC) + timedelta(days=day) for day in days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(own_name)
        .issuer_name(issuer.subject if issuer else own_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        usage = ExtendedKeyUsageOID.SERVER_AUTH if for_servers else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if names:
        alternatives: list[x509.GeneralName] = [_general_name(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _openssl(*arguments: str | Path) -> None:
    openssl = find_program("openssl", package="openssl")
    done = subprocess.run([openssl, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        message = f"openssl {arguments[0]} failed: {done.stderr}"
        raise RuntimeError(message)
