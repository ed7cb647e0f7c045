"""What a host's first minutes show: secrets in time, and a doctor who finds a fresh installation well."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
STRONG = {
    "SECRET_KEY": "b7e1c09d4f2a4c58a3e61d9078fb25ce",
    "ENCRYPTION_KEY": "04d8f6a1c27b4e95b3d07f1e6c8a5920",
    "AUDIT_KEK": "5f" * 16 + "a3" * 16,
}


def manage(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """`manage.py` in `folder`, under the usual umask of 022."""
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *arguments],
        cwd=folder, env={"PATH": os.environ["PATH"], **settings}, umask=0o022,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_the_owner_key_is_shown_even_when_the_first_run_fails_after_it(tmp_path: Path) -> None:
    failed = manage(tmp_path, "first-run", "--port", str(free_port()), AUDIT_SOCKET=str(tmp_path / ("x" * 120)))

    assert failed.returncode == 1
    assert "AUDIT_SOCKET" in failed.stderr
    assert re.search(r"Audit owner key .*\n +[A-Za-z0-9+/]{43}=\n", failed.stdout), failed.stdout


def test_the_doctor_finds_a_fresh_installation_well_until_its_folder_is_opened(tmp_path: Path) -> None:
    assert manage(tmp_path, "db", "upgrade", **STRONG).returncode == 0
    assert manage(tmp_path, "audit", "init", **STRONG).returncode == 0

    well = manage(tmp_path, "doctor", "--json", **STRONG)
    (tmp_path / "instance").chmod(0o755)
    (tmp_path / "instance" / "app.db").chmod(0o644)
    ill = manage(tmp_path, "doctor", "--json", **STRONG)

    assert (well.returncode, ill.returncode) == (0, 1), well.stdout
    levels = {check["what"]: check["level"] for check in json.loads(ill.stdout)}
    assert {what for what, level in levels.items() if level == "FAILED"} == {"file app.db"}


def test_serve_names_everything_that_no_worker_could_start_with_and_starts_nothing(tmp_path: Path) -> None:
    assert manage(tmp_path, "db", "upgrade", **STRONG).returncode == 0
    wrong = {
        "ALLOWED_IPS": "10.0.0.0/33",
        "BLOCKED_USER_AGENTS": "a b",
        "LLM_API_URL": "https://x:99999/v1",
        "REDIS_URL": "redis://host:port/0",
    }

    refused = manage(tmp_path, "serve", "--port", str(free_port()), **STRONG, **wrong)

    assert (refused.returncode, refused.stdout) == (1, "")
    for name in wrong:
        assert name in refused.stderr
    assert "Traceback" not in refused.stderr
    examined = manage(tmp_path, "doctor", **STRONG, **wrong)
    assert (examined.returncode, examined.stderr) == (1, "")
    assert examined.stdout.count("no server starts like this") == len(wrong)


def test_an_env_file_from_before_the_first_start_gets_its_secrets_and_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LLM_MODELS=mine\n", "utf-8")

    # It goes on to serve, on a port that needs no server to be refused.
    done = manage(tmp_path, "first-run", "--port", str(free_port()), AUDIT_SOCKET=str(tmp_path / ("x" * 120)))

    assert "Secrets were generated into .env" in done.stdout, done.stderr
    text = (tmp_path / ".env").read_text("utf-8")
    assert text.startswith("LLM_MODELS=mine\n")
    assert all(f"\n{name}=" in text for name in STRONG)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_secrets_are_never_made_anew_beside_data(tmp_path: Path) -> None:
    assert manage(tmp_path, "db", "upgrade", **STRONG).returncode == 0
    (tmp_path / ".env").write_text("LLM_MODELS=mine\n", "utf-8")

    done = manage(tmp_path, "first-run", "--port", str(free_port()))

    assert done.returncode == 1
    assert "SECRET_KEY: is missing" in done.stderr
    assert (tmp_path / ".env").read_text("utf-8") == "LLM_MODELS=mine\n"


def test_taking_the_schema_back_is_recorded(tmp_path: Path) -> None:
    assert manage(tmp_path, "db", "upgrade", **STRONG).returncode == 0
    assert manage(tmp_path, "audit", "init", **STRONG).returncode == 0

    done = manage(tmp_path, "db", "downgrade", "--revision", "base", "--yes", **STRONG)

    assert done.returncode == 0, done.stderr
    events = json.loads(manage(tmp_path, "show-events", "--json", **STRONG).stdout)
    assert [(event["act"], event["type"]) for event in events] == [
        ("db.downgrade", "admin.intent"),
        ("db.downgrade", "admin.result"),
    ]


def test_an_ipv6_address_is_served(tmp_path: Path) -> None:
    port = free_port()
    assert manage(tmp_path, "db", "upgrade", **STRONG).returncode == 0
    assert manage(tmp_path, "audit", "init", **STRONG).returncode == 0
    environment = {"PATH": os.environ["PATH"], "HOST": "::1", "PORT": str(port), **STRONG}
    with subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "manage.py"), "serve"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as serve:  # fmt: skip
        assert serve.stdout is not None
        said = []
        for line in serve.stdout:
            said.append(line)
            if line.startswith("Ready"):
                serve.terminate()

    assert f"Ready at http://[::1]:{port}.\n" in said, said


def test_doctor_and_status_say_where_they_looked_for_the_server(tmp_path: Path) -> None:
    port = str(free_port())
    assert manage(tmp_path, "db", "upgrade", **STRONG).returncode == 0

    for command in ("doctor", "show-status"):
        told = manage(tmp_path, command, **STRONG, PORT=port).stdout
        assert f"nobody answers at http://127.0.0.1:{port}" in told
