"""The official SDKs that tests/contract runs against the product, each in an environment of its own.

They are no part of the product and some contradict each other, so they come from locks of their own, hashed like the
product's: two Python environments and one folder of npm packages, kept beside `.venv-dev` until their lock changes.
Run as a program it makes all three; `scripts/test` starts it in the background, so that installing happens beside other
tests. Two at once: the second waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import find_program

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "tests" / "contract"
_INSTALL_PATIENCE_S = 900.0
_DIGEST_FILE = "installed-lock.sha256"


class SdkMissing(Exception):
    """An environment of SDKs could not be made; holds the installer's last words. Never a reason to skip."""


@dataclass(frozen=True, slots=True)
class PythonSdks:
    """A virtual environment made by scripts/lib/environment.py from a lock of tests/contract."""

    name: str

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-{self.name}"

    @property
    def interpreter(self) -> str:
        """Its Python, once every pin of the lock is installed. Raises SdkMissing."""
        lock = LOCKS / f"requirements-{self.name}.txt"
        command = [sys.executable, "-I", str(ROOT / "scripts" / "lib" / "environment.py"), str(self.folder), str(lock)]
        _install(command, ROOT)
        return str(self.folder / "bin" / "python")


@dataclass(frozen=True, slots=True)
class NodeSdks:
    """What `npm ci` installs from tests/contract/node: checked against the lock's hashes, and no package's script runs."""

    @property
    def folder(self) -> Path:
        return ROOT / ".venv-node"

    @property
    def modules(self) -> Path:
        """The folder for NODE_PATH, once every package of the lock is in it. Raises SdkMissing."""
        sources = [LOCKS / "node" / name for name in ("package.json", "package-lock.json")]
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            if self._digest() != digest:
                self._build(sources, digest)
        return self.folder / "node_modules"

    def _digest(self) -> str | None:
        try:
            return (self.folder / _DIGEST_FILE).read_text("ascii")
        except FileNotFoundError:
            return None

    def _build(self, sources: list[Path], digest: str) -> None:
        """Built under another name and renamed when whole, so that no half of one is ever found."""
        unfinished = self.folder.with_name(f"{self.folder.name}.building-{os.getpid()}")
        for left_over in self.folder.parent.glob(f"{self.folder.name}.building-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        unfinished.mkdir()
        for source in sources:
            shutil.copyfile(source, unfinished / source.name)
        npm = find_program("npm", package="npm")
        _install([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"], unfinished)
        (unfinished / _DIGEST_FILE).write_text(digest, "ascii")
        shutil.rmtree(self.folder, ignore_errors=True)
        unfinished.rename(self.folder)


SDK3 = PythonSdks("sdk3")
SDK2 = PythonSdks("sdk2")
NODE = NodeSdks()


def _install(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=_INSTALL_PATIENCE_S,
    )  # fmt: skip
    if done.returncode != 0:
        message = (
            f"{' '.join(command)} ended with status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        raise SdkMissing(message)


def main() -> None:
    """All three exist afterwards."""
    for environment in (SDK3, SDK2):
        print(environment.interpreter, flush=True)
    print(NODE.modules, flush=True)


if __name__ == "__main__":
    main()
