"""scripts/lib/environment.py, which makes the virtual environments of scripts/run and scripts/test, run for real."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.programs import wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "lib" / "environment.py"
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder with a lock and the wheels that it names; no index is asked."""

    folder: Path

    @property
    def environment(self) -> Path:
        return self.folder / ".venv"

    @property
    def lock(self) -> Path:
        return self.folder / "requirements.txt"

    def publish(self, version: str) -> str:
        """Put a wheel of the package `tiny` on the shelf and return its hash."""
        wheel = self.folder / "wheels" / f"tiny-{version}-py3-none-any.whl"
        wheel.parent.mkdir(exist_ok=True)
        files = {
            "tiny.py": f"version = {version!r}\n",
            f"tiny-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
            f"tiny-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"tiny-{version}.dist-info/entry_points.txt": "[console_scripts]\ntiny = builtins:print\n",
        }
        record = f"tiny-{version}.dist-info/RECORD"
        rows = [f"{name},{_digest(text)},{len(text)}" for name, text in files.items()]
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in {**files, record: "\n".join([*rows, f"{record},,", ""])}.items():
                archive.writestr(name, text)
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def require(self, version: str, sha256: str) -> None:
        self.lock.write_text(f"tiny=={version} \\\n    --hash=sha256:{sha256}\n", "utf-8")

    def start(self, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT), *flags, str(self.environment), str(self.lock)],
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self.folder),
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.folder / "wheels"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str) -> tuple[int, str, str]:
        with self.start(*flags) as process:
            output, errors = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output, errors

    def python(self, code: str) -> str:
        interpreter = self.environment / "bin" / "python"
        return subprocess.run(
            [str(interpreter), "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
        ).stdout.strip()

    def left_overs(self) -> set[str]:
        return {path.name for path in self.folder.glob(".venv*")} - {".venv", ".venv.lock"}


def _digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path)
    made.require("1.0", made.publish("1.0"))
    return made


def test_a_whole_environment_holds_the_lock_and_nothing_that_runs_by_itself(workshop: Workshop) -> None:
    status, output, errors = workshop.run()

    assert (status, errors) == (0, "")
    assert "Installing 1 packages" in output
    assert workshop.python("import tiny; print(tiny.version)") == "1.0"
    assert workshop.left_overs() == set()
    assert not list(workshop.environment.rglob("*.pth"))
    assert "building" not in (workshop.environment / "bin" / "tiny").read_text("utf-8")
    assert "building" not in (workshop.environment / "bin" / "activate").read_text("utf-8")


def test_a_second_start_does_nothing_and_needs_no_packages(workshop: Workshop) -> None:
    workshop.run()
    (workshop.folder / "wheels" / "tiny-1.0-py3-none-any.whl").unlink()

    assert workshop.run() == (0, "", "")
    assert workshop.run("--check") == (0, "", "")


def test_an_environment_is_copied_from_another_of_the_same_lock_without_packages(workshop: Workshop) -> None:
    workshop.require("1.0", workshop.publish("1.0"))
    assert workshop.run()[0] == 0
    without_packages = Workshop(workshop.folder / "next")
    without_packages.folder.mkdir()
    without_packages.lock.write_bytes(workshop.lock.read_bytes())

    status, _, errors = without_packages.run("--like", str(workshop.environment))

    assert (status, errors) == (0, "")
    assert without_packages.run("--check")[0] == 0
    told = without_packages.python("import tiny, sys; print(tiny.version, sys.prefix)").split()
    assert told == ["1.0", str(without_packages.environment)]
    old = f"{workshop.environment}/".encode()
    assert [path for path in (without_packages.environment / "bin").glob("[!p]*") if old in path.read_bytes()] == []


def test_a_changed_lock_replaces_the_environment(workshop: Workshop) -> None:
    workshop.run()
    workshop.require("2.0", workshop.publish("2.0"))

    asked = workshop.run("--check")
    status, _, _ = workshop.run()

    assert (asked[0], status) == (1, 0)
    assert workshop.python("import tiny; print(tiny.version)") == "2.0"
    assert workshop.left_overs() == set()


def test_a_package_with_another_hash_is_refused_and_the_old_environment_stays(workshop: Workshop) -> None:
    workshop.run()
    workshop.publish("2.0")
    workshop.require("2.0", "0" * 64)

    status, _, errors = workshop.run()

    assert status == 1
    assert "HASHES" in errors
    assert errors.splitlines()[-1].startswith("pip could not install requirements.txt; its reason stands above.")
    assert workshop.python("import tiny; print(tiny.version)") == "1.0"


def test_killed_half_way_it_leaves_no_half_environment(workshop: Workshop) -> None:
    with workshop.start() as process:
        wait_until(
            lambda: list(workshop.folder.glob(".venv.building-*/bin")) != [], what="it builds", seconds=PATIENCE_S
        )
        os.killpg(process.pid, signal.SIGKILL)

    assert not workshop.environment.exists()
    assert workshop.run()[0] == 0
    assert workshop.python("import tiny; print(tiny.version)") == "1.0"
    assert workshop.left_overs() == set()


def test_two_at_once_build_once(workshop: Workshop) -> None:
    with workshop.start() as first, workshop.start() as second:
        outputs = [process.communicate(timeout=PATIENCE_S) for process in (first, second)]

    assert (first.returncode, second.returncode) == (0, 0)
    assert sum("Installing" in output for output, _ in outputs) == 1
    assert workshop.python("import tiny; print(tiny.version)") == "1.0"


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(workshop: Workshop) -> None:
    workshop.environment.with_name(".venv.lock").mkdir()

    status, _, errors = workshop.run()

    assert status == 1
    assert errors.count("\n") == 1
    assert errors.startswith(f"Could not make {workshop.environment}: ")
