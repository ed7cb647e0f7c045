"""An embedded instance that was worked with, and scripts/backup and scripts/restore over it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from secure_llm_proxy.cli.host_backup.signing import SIGNING_KEY, drawn_signing_key, named, public_text
from tests.support.installation import installation_in
from tests.support.operator_commands import run_command

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Instance:
    """`folder` holds `.env` and `instance/`; backups go to `backups`, and `identity` opens them and names who signs them."""

    folder: Path
    owner_key: str
    owner_public_key: str

    @property
    def data(self) -> Path:
        return self.folder / "instance"

    @property
    def backups(self) -> Path:
        return self.folder / "backups"

    @property
    def identity(self) -> Path:
        return self.folder / "identity.txt"

    @property
    def log(self) -> Path:
        (log,) = (path.parent for path in (self.data / "audit").glob("*/genesis.json"))
        return log

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(arguments, environment=_environment(), directory=self.folder, seconds=300)

    def script(self, name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, *arguments),
            env=_environment() | environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def begin(self, name: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(name, *arguments),
            env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def command(self, name: str, *arguments: object) -> list[str]:
        return [str(ROOT / "scripts" / name), *map(str, arguments)]

    def backup(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.script("backup", "--instance", self.data, "--to", self.backups, *arguments)

    def backed_up(self, *arguments: object) -> dict[str, object]:
        done = self.backup("--json", *arguments)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told

    def verify(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.script("backup", "--verify", "--to", self.backups, *arguments)

    def stamps(self) -> list[str]:
        return sorted(path.stem for path in (self.backups / "sets").glob("*.json"))

    def files(self) -> set[str]:
        """Encrypted files, and whatever else lies among them."""
        places = [self.backups / name for name in ("database", "segments", "segments/closed", "keys")]
        return {str(path.relative_to(self.backups)) for place in places for path in place.glob("*") if path.is_file()}

    def in_copy(self, folder: Path) -> Instance:
        shutil.copytree(self.folder, folder, symlinks=True)
        return Instance(folder, self.owner_key, self.owner_public_key)


def make_instance(folder: Path, **settings: str) -> Instance:
    """With a database, a user, an API key, and a log in which all that stands. `folder`: sockets lie in it, so it must be short."""
    with installation_in(folder, AUDIT_ENCRYPTION_ENABLED="true", **settings) as made:
        made.make_user("ada")
        made.make_key("ada")
        values = {name: value for name, value in made.environment.items() if name not in {"INSTANCE_DIR", "ENV_FILE"}}
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    (folder / ".env").chmod(0o600)
    identity = make_identity(folder / "identity.txt")
    recipient = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True, timeout=20).stdout
    (folder / "instance" / "backup-recipient").write_bytes(recipient)
    name_signer(identity, public_text(drawn_signing_key(folder / "instance" / SIGNING_KEY)))
    return Instance(folder, made.owner_key, made.owner_public_key)


def make_identity(path: Path) -> Path:
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True, timeout=20)
    return path


def name_signer(identity: Path, signer: str) -> None:
    """As the operator writes it into the identity's file."""
    identity.write_text(f"{named([signer])}\n{identity.read_text()}")


def _environment() -> dict[str, str]:
    return {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "PYTHON": sys.executable, "LANG": "C.UTF-8"}
