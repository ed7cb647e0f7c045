"""What must stand in no file of the project. Patterns are put together from pieces, so that this file holds none of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_DOT = re.escape(".")
# Addresses of package registries: an installation takes what the machine's own configuration names.
REGISTRIES = [
    "py" + "pi" + _DOT + "org",
    "files" + _DOT + "python" + "hosted",
    "registry" + _DOT + "npm" + "js",
    "deb" + _DOT + "deb" + "ian",
    "security" + _DOT + "deb" + "ian",
    "archive" + _DOT + "ubu" + "ntu",
]
# Folders that exist only where the project is written. A service's own places (/opt, /etc, /var, /run) are meant.
MACHINE = r"(^|[^A-Za-z0-9_.])/(wo" + "rk|fa" + r"rm|ro" + r"ot|ho" + "me/[a-z])/"
UNFINISHED = [
    "TO" + "DO",
    "FIX" + "ME",
    "NotImplemented" + "Error",
    r"pytest\.(mark\.)?sk" + "ip",
    "xf" + "ail\\b",
    "pragma: no " + "cover",
]
SECRETS = [r"-----BEGIN [A-Z ]*PRIVATE KEY-----", r"\bsk-[A-Za-z0-9]{32,}", r"\bAKIA[0-9A-Z]{16}\b"]


def files() -> list[Path]:
    """Every file that is tracked or would be: what git ignores is none of the project."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:  # an archive of the project without its history
        found = [path for path in ROOT.rglob("*") if not any(part.startswith(".venv") for part in path.parts)]
    return [path for path in found if path.is_file()]


def lines_with(pattern: str, *, suffix: str = "", flags: re.RegexFlag = re.NOFLAG) -> list[str]:
    wanted = re.compile(pattern, flags)
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files()
        if path.name.endswith(suffix)
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if wanted.search(line)
    ]


def test_there_is_something_to_look_at() -> None:
    assert len(files()) > 50


def test_no_package_registry_is_named() -> None:
    assert lines_with("|".join(REGISTRIES), flags=re.IGNORECASE) == []


def test_no_path_of_a_developers_machine_is_named() -> None:
    assert lines_with(MACHINE) == []


def test_nothing_is_left_unfinished_or_skipped() -> None:
    assert lines_with("|".join(UNFINISHED), suffix=".py") == []


@pytest.mark.parametrize("pattern", SECRETS)
def test_no_secret_is_committed(pattern: str) -> None:
    assert lines_with(pattern) == []


def test_no_file_is_larger_than_a_lock() -> None:
    assert [str(path) for path in files() if path.stat().st_size > 512 * 1024] == []
