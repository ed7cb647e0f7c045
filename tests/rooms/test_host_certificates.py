"""What secure-llm-certificates.timer starts, at a real nginx."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.cli.host.served import certificate_in, handshake
from tests.support.certificates import Certificate, make_faulty_certificate
from tests.support.moved_host import ROOT, MovedHost
from tests.support.nginx import PrivateNginx
from tests.support.programs import wait_until


@pytest.fixture
def nginx(short_folder: Path, tmp_path: Path) -> Iterator[PrivateNginx]:
    certificate = make_faulty_certificate(tmp_path / "tls", days=(-1, 90))
    folder = short_folder / f"n-{tmp_path.name[-12:]}"
    with PrivateNginx(folder, certificate, socket=folder / "none.sock") as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, nginx: PrivateNginx) -> MovedHost:
    host = MovedHost(tmp_path / "machine")
    host.take_site_of(nginx)
    return host


def look_at_certificates(host: MovedHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "secure_llm_proxy.cli.host.certificates", *arguments],
        env={**host.environment, "PYTHONPATH": str(ROOT)},
        cwd="/", capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip


def served_by(nginx: PrivateNginx) -> bytes:
    return handshake("127.0.0.1", nginx.port, "localhost").certificate


def wait_until_served(nginx: PrivateNginx, certificate: Certificate) -> None:
    """A reload of nginx is over some time after it was asked for; its old worker takes connections until then, too."""
    held = certificate_in(certificate.certificate)
    master = (nginx.directory / "nginx.pid").read_text().strip()
    workers = Path(f"/proc/{master}/task/{master}/children")

    def only_the_new_one_serves() -> bool:
        try:
            return served_by(nginx) == held and len(workers.read_text().split()) == 1
        except OSError:
            return False

    wait_until(only_the_new_one_serves, what="nginx serves with the new certificate alone")


def test_a_renewed_certificate_goes_into_use_and_only_then_is_nginx_reloaded(
    host: MovedHost, nginx: PrivateNginx, tmp_path: Path
) -> None:
    told = tmp_path / "reloaded"
    pid = (nginx.directory / "nginx.pid").read_text().strip()
    reload = ("--reload", f"sh -c 'echo again >>{told}; kill -HUP {pid}'")

    same = look_at_certificates(host, *reload)
    renewed = make_faulty_certificate(tmp_path / "renewed", days=(-1, 365))
    shutil.copy(renewed.key, nginx.certificate.key)
    shutil.copy(renewed.certificate, nginx.certificate.certificate)
    changed = look_at_certificates(host, *reload)
    wait_until_served(nginx, renewed)
    again = look_at_certificates(host, *reload)

    assert (same.returncode, changed.returncode, again.returncode) == (0, 0, 0), changed.stderr
    assert "nginx was reloaded" in changed.stdout
    assert told.read_text() == "again\n"


def test_a_certificate_near_its_end_fails_and_is_put_into_use_all_the_same(
    host: MovedHost, nginx: PrivateNginx, tmp_path: Path
) -> None:
    pid = (nginx.directory / "nginx.pid").read_text().strip()
    short = make_faulty_certificate(tmp_path / "short", days=(-1, 20))
    shutil.copy(short.key, nginx.certificate.key)
    shutil.copy(short.certificate, nginx.certificate.certificate)

    done = look_at_certificates(host, "--reload", f"kill -HUP {pid}")

    assert done.returncode == 1
    assert "ends in 20 days" in done.stderr
    wait_until_served(nginx, short)


def test_a_reload_that_fails_and_a_file_that_is_none_are_told(
    host: MovedHost, nginx: PrivateNginx, tmp_path: Path
) -> None:
    before = served_by(nginx)
    other = make_faulty_certificate(tmp_path / "other", days=(-1, 200))
    shutil.copy(other.certificate, nginx.certificate.certificate)
    unreloaded = look_at_certificates(host, "--reload", "sh -c 'echo key mismatch; exit 1'")
    nginx.certificate.certificate.write_text("no certificate")
    unread = look_at_certificates(host)

    assert (unreloaded.returncode, unread.returncode) == (1, 1)
    assert "key mismatch" in unreloaded.stderr
    assert "holds no certificate" in unread.stderr
    assert served_by(nginx) == before
