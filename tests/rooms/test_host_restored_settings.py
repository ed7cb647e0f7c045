"""`restore --settings` into an installed host's folder: what comes back, and what stays this host's own."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

from secure_llm_proxy.cli.host_backup.restoring import Newer, Restore, Target
from secure_llm_proxy.cli.host_backup.sets import Manifest, Store, StoredFile

STAMP = "20261121T120000Z"


def restored_settings(folder: Path, of_set: dict[str, bytes], there: dict[str, bytes]) -> dict[str, bytes]:
    """What a restore would replace, and with what."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, value in of_set.items():
            entry = tarfile.TarInfo(f"settings/{name}")
            entry.size = len(value)
            archive.addfile(entry, io.BytesIO(value))
    identity = folder / "identity"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True, timeout=20)
    recipient = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True, text=True, timeout=20)
    (folder / "keys").mkdir()
    subprocess.run(
        ["age", "-r", recipient.stdout.strip(), "-o", folder / "keys" / f"{STAMP}.tar.age"],
        input=content.getvalue(), check=True, timeout=20,
    )  # fmt: skip
    sealed = (folder / "keys" / f"{STAMP}.tar.age").read_bytes()
    stored = StoredFile(f"keys/{STAMP}.tar.age", len(sealed), hashlib.sha256(sealed).hexdigest())
    manifest = Manifest(STAMP, "0.1.0", "sqlite", "main/host", "host", "A" * 44, (), stored, stored, stored, ())
    settings = folder / "settings"
    restore = Restore(
        Store(folder), manifest, identity, Target(settings, None, None), there, lambda _: None,
        with_settings=True, newer=Newer(None, None),
    )  # fmt: skip
    return restore.settings


def paths(folder: Path) -> bytes:
    return f"AUDIT_DIR={folder}/segments\nAUDIT_KEYS_DIR={folder}/keys\n".encode()


def test_only_settings_and_secrets_come_back_and_nothing_that_root_would_run(tmp_path: Path) -> None:
    allowed = {
        "env": b"WORKERS=2\n", "audit.env": paths(tmp_path), "models.yaml": b"providers: {}\n", "providers-ca.pem": b"ca",
        "backup-recipient": b"age1x\n", "owner-public-key": b"key\n", "credentials/secret_key": b"s",
        "audit-credentials/audit_kek": b"0" * 64, "tls/key.pem": b"t",
    }  # fmt: skip
    refused = {
        "firewall.undo": b"rm -rf /\n", "firewall.nft": b"", "install.conf": b"", "backup-signing-key": b"", "anything": b"", "tls/-x": b"",
        "credentials/a b": b"", "other/file": b"",
    }  # fmt: skip

    restored = restored_settings(tmp_path, allowed | refused, {})

    assert restored == allowed


def test_how_this_hosts_own_servers_are_reached_stays_as_it_is(tmp_path: Path) -> None:
    theirs = b"FLASK_ENV=production\nREDIS_URL=redis://lost.example.test/0\nBIND=127.0.0.1:80\nWORKERS=8\n"
    ours = b"BIND=unix:/run/web.sock\nREDIS_URL=redis://127.0.0.1:6379/0\nWORKERS=2\n"
    there = {"env": ours, "audit.env": paths(tmp_path), "credentials/redis_password": b"ours"}
    there["audit-credentials/audit_kek"] = b"0" * 64

    restored = restored_settings(tmp_path, {"env": theirs, "credentials/redis_password": b"theirs"}, there)

    assert restored == {
        "env": b"FLASK_ENV=production\nWORKERS=8\nBIND=unix:/run/web.sock\nREDIS_URL=redis://127.0.0.1:6379/0\n"
    }
