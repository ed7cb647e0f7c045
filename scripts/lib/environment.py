"""Make a virtual environment that holds exactly what a lock file names. Standard library only: nothing is installed yet.

    environment.py [--check] [--like OTHER] ENVIRONMENT LOCK

The environment is built under a temporary name and gets its own name when it is whole: killed at any moment, this leaves
either the old environment, or none, never half of one. Two at once: the second waits for the first and then finds the work
done. A whole environment remembers the digest of its lock; while that is unchanged, nothing is done and no network is used.
With --like it is copied from a whole one of the same lock, where there is one: no network either, and seconds, not a minute.

Every package is checked against the lock's hashes and comes as a wheel, so no foreign code runs while installing.
Exit status: 0 done (or, with --check, nothing to do), 1 failed (or, with --check, something to do), 2 usage.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TextIO

DIGEST_FILE = "installed-lock.sha256"


class EnvironmentNotMade(Exception):
    """Says in one sentence what went wrong and what to do."""


def expected_digest(lock: Path) -> str:
    """Digest of the lock and of the Python that runs: another minor version cannot use the packages installed for this one."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}\n".encode()
    return hashlib.sha256(version + lock.read_bytes()).hexdigest()


def is_whole(environment: Path, lock: Path) -> bool:
    try:
        return (environment / DIGEST_FILE).read_text("ascii") == expected_digest(lock)
    except (FileNotFoundError, NotADirectoryError):
        return False


def make(environment: Path, lock: Path, like: Path | None = None) -> None:
    """`environment` is whole afterwards. Raises EnvironmentNotMade."""
    guard = environment.with_name(f"{environment.name}.lock")
    try:
        with guard.open("w") as held:
            wait_for(held, environment)
            if not is_whole(environment, lock):
                build(environment, lock, like)
    except OSError as error:
        raise EnvironmentNotMade(f"Could not make {environment}: {error}") from error


def wait_for(held: TextIO, environment: Path) -> None:
    """The lock is ours; the kernel gives it back when this process ends, however it ends."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"Waiting for another process that is making {environment.name} ...")
        fcntl.flock(held, fcntl.LOCK_EX)


def build(environment: Path, lock: Path, like: Path | None = None) -> None:
    """Build beside the final place, then move there.

    The temporary name is this process's own: a pip that outlived its killed parent may still write under another.
    """
    unfinished = environment.with_name(f"{environment.name}.building-{os.getpid()}")
    replaced = environment.with_name(f"{environment.name}.replaced")
    for left_over in (*environment.parent.glob(f"{environment.name}.building-*"), replaced):
        shutil.rmtree(left_over, ignore_errors=True)

    if like is not None and is_whole(like, lock):
        say(f"Copying {environment.name}: {lock.name} is the same ...")
        # The mark of being whole comes last, as ever.
        shutil.copytree(like, unfinished, symlinks=True, ignore=shutil.ignore_patterns(DIGEST_FILE))
        rename_inside(unfinished, like, environment)
    else:
        say(f"Making {environment.name} with Python {sys.version.split()[0]} ...")
        try:
            venv.create(unfinished, with_pip=True, prompt=environment.name)
        except subprocess.CalledProcessError as error:
            raise EnvironmentNotMade(f"Python could not make a virtual environment: {error}") from error
        install(unfinished / "bin" / "python", lock)
        rename_inside(unfinished, unfinished, environment)
    (unfinished / DIGEST_FILE).write_text(expected_digest(lock), "ascii")

    if environment.exists():
        environment.rename(replaced)
    unfinished.rename(environment)
    shutil.rmtree(replaced, ignore_errors=True)


def install(python: Path, lock: Path) -> None:
    """Install every pin of `lock`; say how far it is."""
    pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    options = ["--require-hashes", "--only-binary", ":all:", "--no-warn-script-location", "--progress-bar", "off"]
    pins = sum(1 for line in lock.read_text("utf-8").splitlines() if "==" in line and not line.startswith((" ", "#")))
    say(f"Installing {pins} packages from {lock.name} ...")
    with subprocess.Popen(  # noqa: S603 - our own argument list, no shell
        [*pip, "install", *options, "--requirement", str(lock)], stdout=subprocess.PIPE, text=True
    ) as installer:
        assert installer.stdout is not None
        found = 0
        for line in installer.stdout:
            if line.startswith("Collecting "):
                found += 1
                tell_progress(f"  {found}/{pins} {line.split()[1].split('==')[0]}")
            elif line.startswith("Installing collected"):
                tell_progress(f"  {found}/{pins} unpacking")
        tell_progress("")
    if installer.returncode != 0:
        raise EnvironmentNotMade(
            f"pip could not install {lock.name}; its reason stands above. "
            "Without a network, name a folder of wheels in PIP_FIND_LINKS and set PIP_NO_INDEX=1."
        )
    # Python 3.11 brings setuptools along: not in the lock, and its .pth file would run at every interpreter start.
    subprocess.run(  # noqa: S603 - our own argument list, no shell
        [*pip, "--quiet", "uninstall", "--yes", "setuptools"], check=True, stderr=subprocess.DEVNULL
    )


def rename_inside(environment: Path, named: Path, final: Path) -> None:
    """Let scripts with an absolute path in them (`#!` lines, `activate`, pyvenv.cfg) name the final place, not `named`."""
    old, new = bytes(named), bytes(final)
    for path in (*(environment / "bin").iterdir(), environment / "pyvenv.cfg"):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes()
            if old in text and b"\0" not in text:
                path.write_bytes(text.replace(old, new))  # in place: keeps the mode


def say(sentence: str) -> None:
    print(sentence, flush=True)


def tell_progress(state: str) -> None:
    """One line that overwrites itself; nothing where nobody watches."""
    if sys.stdout.isatty():
        print(f"\r\033[K{state}", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make a virtual environment that holds exactly what a lock file names."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if there is something to do")
    parser.add_argument("--like", type=Path, help="an environment that may be copied if its lock is the same")
    parser.add_argument("environment", type=Path)
    parser.add_argument("lock", type=Path)
    arguments = parser.parse_args()
    environment, lock = arguments.environment.absolute(), arguments.lock.absolute()
    if arguments.check:
        return 0 if is_whole(environment, lock) else 1
    try:
        make(environment, lock, arguments.like.resolve() if arguments.like is not None else None)
    except EnvironmentNotMade as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
