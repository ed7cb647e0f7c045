"""The house as DESIGN draws it: what stands at its top, and what every room says about itself."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "secure_llm_proxy"
TOP_LEVEL = [
    "README.md", "app.py", "manage.py", "gunicorn.conf.py", "requirements.txt", ".env.example",
    "migrations/env.py", "scripts/run", "scripts/test", "scripts/check", "scripts/lock",
    "deploy/nginx/secure_llm_proxy.conf", "deploy/systemd/secure_llm_proxy.service", "deploy/systemd/secure-llm-audit.service",
    "docs/request-route.md", "docs/configuration.md", "docs/api.md", "docs/performance.md", "bench/run", "bench/profile",
]  # fmt: skip
SAYS = ["For", "Takes", "Gives", "When it fails", "Source"]
APART = {"server", "demo"}


def contract(name: str) -> dict[str, list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    found: dict[str, list[str]] = next(contract for contract in contracts if contract["name"].startswith(name))
    return found


def rooms() -> list[str]:
    """The rooms, as the import rule lists them."""
    return [name.rpartition(".")[2] for name in contract("Rooms are blind")["modules"]]


@pytest.mark.parametrize("path", TOP_LEVEL)
def test_the_top_level_is_where_users_look_for_it(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("room", rooms())
def test_every_room_says_what_it_is_for(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))) or ""

    assert [word for word in SAYS if f"{word}:" not in docstring.replace("*", "")] == []


def test_the_import_rule_knows_every_part_of_the_package() -> None:
    layers = contract("The import rule")["layers"]
    ruled = {name.strip().rpartition(".")[2] for layer in layers for name in layer.replace(":", "|").split("|")}

    found = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"} - {
        "__init__",
        "__pycache__",
    }

    assert found - APART == ruled


def test_no_room_is_empty() -> None:
    modules = {path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}

    assert {path.parent for path in PACKAGE.rglob("__init__.py")} - modules == set()


@pytest.mark.parametrize(
    "script",
    [
        "scripts/run",
        "scripts/test",
        "scripts/check",
        "scripts/lock",
        "scripts/backup",
        "scripts/restore",
        "bench/run",
        "bench/profile",
    ],
)
def test_every_script_explains_itself(script: str) -> None:
    command = [str(ROOT / script), "--help"]
    environment = {**os.environ, "BENCH_PYTHON": sys.executable}

    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)

    assert said.stdout.startswith(f"usage: {script}")
    assert said.stderr == ""


# Runs in a process of its own: which of our modules, while only being imported, open a socket, start a program or a
# thread, or write a file? What a library does for itself (urllib3 tries IPv6) is not ours.
_IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, sysconfig, threading
from pathlib import Path

root = Path(sys.argv[1])
sys.path.insert(0, str(root))
library = sysconfig.get_path("stdlib")
sites = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
work = {"socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "os.system", "sqlite3.connect"}

def watch(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event not in work and not writes:
        return
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if any(name.startswith(site) for site in sites):
            return
        if name.startswith(str(root / "secure_llm_proxy")):
            print(event, name, arguments[:1])
            return
        frame = frame.f_back

import secure_llm_proxy
sys.addaudithook(watch)
for module in pkgutil.walk_packages(secure_llm_proxy.__path__, "secure_llm_proxy."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        print("thread", thread)
"""


def test_importing_the_package_does_no_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", _IMPORT_EVERYTHING, str(ROOT)],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
        env={"PATH": os.environ.get("PATH", os.defpath)},
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
