from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from secure_llm_proxy.cli.host.served import CertificateUnread, certificate_in, days_left, end_of
from tests.support.certificates import make_faulty_certificate


@pytest.mark.parametrize("days", [-400, -1, 3, 90, 400, 12_000])  # the last one is written as GeneralizedTime
def test_a_certificates_end_is_read_as_a_full_parser_reads_it(tmp_path: Path, days: int) -> None:
    path = make_faulty_certificate(tmp_path, days=(-500, days)).certificate
    now = datetime.now(UTC)

    found = certificate_in(path)

    assert end_of(found) == x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    assert days_left(found, now) == pytest.approx(days, abs=0.01)


def test_of_a_chain_the_first_certificate_counts(tmp_path: Path) -> None:
    path = make_faulty_certificate(tmp_path, days=(-1, 50), signed_by_leaf=True).certificate

    found = certificate_in(path)

    assert end_of(found) - datetime.now(UTC) > timedelta(days=40)


def test_what_is_no_certificate_is_told_and_never_read_beyond_its_end(tmp_path: Path) -> None:
    path = make_faulty_certificate(tmp_path).certificate
    whole = certificate_in(path)
    broken = tmp_path / "broken.pem"

    for cut in range(0, 120, 7):
        with pytest.raises(CertificateUnread):
            end_of(whole[:cut])
    for content in (b"", b"-----BEGIN CERTIFICATE-----\n****\n-----END CERTIFICATE-----\n", b"a key"):
        broken.write_bytes(content)
        with pytest.raises(CertificateUnread):
            end_of(certificate_in(broken))
