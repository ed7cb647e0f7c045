"""The lock files: every pin hashed, nothing of the machine that wrote them, and what the .in files ask for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))? \\")
_HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
_ASKED = re.compile(r"([A-Za-z0-9._-]+)(\[[a-z,]+\])?")

# What the product's users fixed: these libraries and no others in their place.
FIXED = {
    "alembic", "click", "flask", "flask-limiter", "flask-login", "flask-migrate", "flask-sqlalchemy", "gunicorn",
    "psycopg2-binary", "pyotp", "python-json-logger", "redis", "requests", "sentry-sdk", "sqlalchemy", "werkzeug",
}  # fmt: skip
# Replaces urllib3's own files on installation.
NEVER = {"niquests", "urllib3-future", "gunicorn-h1c"}
# Every lock of Python packages with the number of pins that it has at least.
LOCKS = {
    "requirements.txt": 40,
    "requirements-dev.txt": 40,
    "tests/contract/requirements-sdk3.txt": 10,
    "tests/contract/requirements-sdk2.txt": 40,
}


@dataclass(frozen=True, slots=True)
class Pin:
    name: str
    version: str
    hashes: int


def read_lock(name: str) -> list[Pin]:
    """Every pin with the number of its hashes. Fails on a line that is neither a pin, a hash nor a comment."""
    pins: list[Pin] = []
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if found := _PIN.fullmatch(line):
            pins.append(Pin(found["name"], found["version"], 0))
        elif _HASH.fullmatch(line):
            last = pins.pop()
            pins.append(Pin(last.name, last.version, last.hashes + 1))
        else:
            assert line.lstrip().startswith("#"), f"{name}: {line!r}"
    return pins


@pytest.mark.parametrize(("name", "count"), LOCKS.items())
def test_every_pin_is_hashed(name: str, count: int) -> None:
    pins = read_lock(name)

    assert len(pins) >= count
    assert [pin for pin in pins if pin.hashes == 0] == []


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_asked_for_is_pinned(name: str) -> None:
    asked = {
        found[1].lower()
        for line in (ROOT / name.replace(".txt", ".in")).read_text("utf-8").splitlines()
        if not line.startswith(("#", "-")) and (found := _ASKED.match(line))
    }

    assert asked - {pin.name for pin in read_lock(name)} == set()


def test_the_libraries_that_users_fixed_are_pinned_and_harmful_ones_are_not() -> None:
    names = {pin.name for pin in read_lock("requirements.txt")}

    assert names >= FIXED
    assert names & NEVER == set()


def test_tests_run_on_the_very_versions_that_the_product_is_installed_with() -> None:
    product, tests = set(read_lock("requirements.txt")), set(read_lock("requirements-dev.txt"))

    assert product <= tests


def test_npm_packages_are_hashed_and_no_address_says_where_they_come_from() -> None:
    node = ROOT / "tests" / "contract" / "node"
    asked = json.loads((node / "package.json").read_text("utf-8"))["dependencies"]
    packages = json.loads((node / "package-lock.json").read_text("utf-8"))["packages"]
    own = packages.pop("")

    assert own["dependencies"] == asked
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert [name for name, package in packages.items() if not package["integrity"].startswith("sha512-")] == []
    assert [name for name, package in packages.items() if "resolved" in package] == []
    assert [name for name, package in packages.items() if package.get("hasInstallScript")] == []
