"""A certificate authority for one test run, and what it signs: a leaf for localhost that is no authority itself."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

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


def make_certificate(directory: Path, *, names: str = "DNS:localhost,IP:127.0.0.1,IP:::1") -> Certificate:
    """Write an authority and a leaf for `names` (OpenSSL's subjectAltName syntax) into `directory`; both live two days."""
    directory.mkdir(parents=True, exist_ok=True)
    authority, authority_key = directory / "authority.pem", directory / "authority.key"
    request, leaf, leaf_key = directory / "leaf.csr", directory / "leaf.pem", directory / "leaf.key"
    extensions = directory / "leaf.ext"
    extensions.write_text(_LEAF_EXTENSIONS.format(names=names), "utf-8")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    _openssl(
        "req", "-x509", *new_key, "-days", "2", "-subj", "/CN=Test authority",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", authority_key, "-out", authority,
    )  # fmt: skip
    _openssl("req", *new_key, "-subj", "/CN=localhost", "-keyout", leaf_key, "-out", request)
    _openssl(
        "x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-CAcreateserial",
        "-days", "2", "-extfile", extensions, "-out", leaf,
    )  # fmt: skip
    return Certificate(certificate=leaf, key=leaf_key, authority=authority)


def _openssl(*arguments: str | Path) -> None:
    openssl = find_program("openssl", package="openssl")
    done = subprocess.run([openssl, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        message = f"openssl {arguments[0]} failed: {done.stderr}"
        raise RuntimeError(message)
