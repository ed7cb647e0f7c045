"""Clean Debian roots and the wheels of our lock, made once and kept outside the tree. `python -m tests.support.debian_roots`.

A root is what mmdebstrap makes of a suite with systemd and nothing of ours: the smallest server somebody would install on.
Debian's packages that the installer asks apt for lie in the root's package cache, not installed, so that a machine without
a network installs them as any other would. Roots are made anew when this recipe changes or after a month.

Needs root, mmdebstrap and the Debian mirror of this machine's own sources list. Without them it fails and says what to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parents[2]
_LOCK = ROOT / "requirements.txt"
_INCLUDED = "systemd,systemd-sysv,dbus,iproute2,procps,ca-certificates"
# What scripts/install and the operator's scripts may ask apt for.
_CACHED = (
    "nginx-light redis-server postgresql python3 python3-venv openssl age logrotate nftables curl sqlite3 zstd xz-utils "
    "sudo cron acl rsync certbot"
)
_OLD_S = 30 * 86_400
_PATIENCE_S = 900.0


class RootMissing(Exception):
    """A clean Debian could not be made; says why. Never a reason to skip."""


@dataclass(frozen=True, slots=True)
class Release:
    """A Debian release on which the product is installed, with the Python that it brings."""

    suite: str
    version: str
    python: str
    python_full: str


RELEASES = (Release("bookworm", "12", "3.11", "3.11.2"), Release("trixie", "13", "3.13", "3.13.5"))


def cache_folder() -> Path:
    """Where roots and wheels are kept: `TEST_HOST_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("TEST_HOST_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base if chosen else base / "secure-llm-proxy" / "hosts"


def root_of(release: Release) -> Path:
    """The folder of a clean Debian; read it, never write to it. Raises RootMissing."""
    recipe = hashlib.sha256(f"{_INCLUDED}\n{_CACHED}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{release.suite}-{recipe}"
    with _alone(folder):
        if folder.exists() and time.time() - folder.stat().st_mtime > _OLD_S:
            shutil.rmtree(folder)
        if not folder.exists():
            _make_root(release, folder)
    return folder


def wheels_for(release: Release) -> Path:
    """A folder with every wheel of requirements.txt for the release's Python. Raises RootMissing."""
    digest = hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"wheels-{release.python}-all-{digest}"
    with _alone(folder):
        if not folder.exists():
            unfinished = _fresh(folder)
            # pip judges markers by the Python that runs it, and this is for another one.
            lock = unfinished.with_suffix(".txt")
            lock.write_text(_needed_by(release, _LOCK.read_text("utf-8")), "utf-8")
            _run(
                sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--require-hashes",
                "--only-binary", ":all:", "--python-version", release.python, "--dest", str(unfinished),
                "--requirement", str(lock),
                what=f"the wheels for Python {release.python}",
            )  # fmt: skip
            unfinished.rename(folder)
    return folder


def _needed_by(release: Release, lock: str) -> str:
    """The lock's pins whose marker holds for the release's Python, without their markers."""
    version = release.python_full
    environment = {"python_full_version": version, "python_version": release.python}
    kept, keeping = [], True
    for line in lock.splitlines(keepends=True):
        pin, found, marker = line.partition(" ; ")
        if not line.startswith((" ", "#")):
            keeping = not found or Marker(marker.rstrip("\\\n ")).evaluate(environment)
        if keeping:
            kept.append(f"{pin} \\\n" if found else line)
    return "".join(kept)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fresh(folder: Path) -> Path:
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o755)
    return unfinished


def _make_root(release: Release, folder: Path) -> None:
    if os.geteuid() != 0:
        raise RootMissing("Only root can make a clean Debian to install into.")
    unfinished = _fresh(folder)
    download = f'chroot "$1" apt-get install --yes --quiet --no-install-recommends --download-only {_CACHED}'
    _run(
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDED}",
        '--aptopt=APT::Install-Recommends "false"', '--aptopt=APT::Keep-Downloaded-Packages "true"',
        f"--customize-hook={download}", "--skip=cleanup/apt", "--skip=cleanup/apt/lists",
        release.suite, str(unfinished), _mirror(),
        what=f"a clean Debian {release.version}",
    )  # fmt: skip
    # The host's own names for itself must not come along.
    (unfinished / "etc" / "hostname").unlink(missing_ok=True)
    (unfinished / "etc" / "resolv.conf").unlink(missing_ok=True)
    unfinished.rename(folder)


def _mirror() -> str:
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages"],
        capture_output=True, text=True, check=False, timeout=60,
    ).stdout  # fmt: skip
    for line in told.splitlines():
        address, _, who = line.partition(" ")
        if who == "Debian Debian":
            return address
    raise RootMissing(
        "This machine's package sources name no Debian mirror; scripts/test-host takes Debian from there."
    )


def _run(*command: str, what: str) -> None:
    print(f"Making {what} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except FileNotFoundError:
        raise RootMissing(f"{command[0]} is not installed; {what} can't be made without it.") from None
    if done.returncode != 0:
        raise RootMissing(f"Could not make {what}: {done.stderr[-3000:]}")
    print(f"Made {what} in {time.monotonic() - began:.0f} s.", file=sys.stderr, flush=True)


def main() -> None:
    wanted = sys.argv[1:] or [release.suite for release in RELEASES]
    try:
        for release in RELEASES:
            if release.suite in wanted:
                root_of(release)
                wheels_for(release)
    except RootMissing as missing:
        print(missing, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
