"""A configuration that must not run says so, every mistake at once, and nothing starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STRONG = {
    "SECRET_KEY": "b7e1c09d4f2a4c58a3e61d9078fb25ce",
    "ENCRYPTION_KEY": "04d8f6a1c27b4e95b3d07f1e6c8a5920",
    "AUDIT_KEK": "5f" * 16 + "a3" * 16,
}
PRODUCTION = {**STRONG, "FLASK_ENV": "production", "LLM_API_URL": "https://provider.invalid/v1", "WORKERS": "1"}


def _start(tmp_path: Path, settings: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(command or (str(ROOT / "manage.py"), "serve"))],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "INSTANCE_DIR": str(tmp_path / "instance"),
            **settings,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_every_mistake_of_a_production_host_is_named_at_once(tmp_path: Path) -> None:
    settings = {
        "FLASK_ENV": "production",
        "SECRET_KEY": "changeme-changeme-changeme-changeme",
        "DEBUG": "true",
        "SSL_VERIFY": "false",
        "AUTHENTICATION_REQUIRED": "false",
        "AUDIT_ENCRYPTION_ENABLED": "false",
        "RATE_LIMIT_PER_MINTE": "10",
        "PORT": "eighty",
    }

    done = _start(tmp_path, settings)

    assert done.returncode == 1
    for name in (*settings, "ENCRYPTION_KEY", "REDIS_URL", "DATABASE_URL", "LLM_API_URL"):
        if name != "FLASK_ENV":
            assert f"- {name}:" in done.stderr, name
    assert "did you mean RATE_LIMIT_PER_MINUTE?" in done.stderr
    assert "Traceback" not in done.stderr
    assert "changeme" not in done.stderr
    assert not (tmp_path / "instance").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"WORKERS": "2", "DATABASE_URL": "postgresql://u:p@127.0.0.1/x"}, "REDIS_URL"),
        ({"WORKERS": "2", "REDIS_URL": "redis://127.0.0.1:1/0"}, "DATABASE_URL"),
        ({"LLM_API_URL": "http://provider.invalid/v1", "LLM_API_KEY": "sk-x"}, "LLM_API_URL"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY"),
        ({"CACHE_ENABLED": "true"}, "CACHE_ENABLED"),
    ],
)
def test_one_mistake_is_enough(tmp_path: Path, change: dict[str, str], named: str) -> None:
    done = _start(tmp_path, {**PRODUCTION, **change})

    assert done.returncode == 1
    assert f"- {named}:" in done.stderr


def test_an_unknown_name_in_the_env_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LOG_LEVLE=DEBUG\nFAVOURITE_COLOUR=green\n", "utf-8")

    done = _start(tmp_path, STRONG)

    assert done.returncode == 1
    assert "LOG_LEVLE: is not a setting (in .env); did you mean LOG_LEVEL?" in done.stderr
    assert "FAVOURITE_COLOUR" in done.stderr


def test_what_was_not_prepared_is_said_with_the_command_that_prepares_it(tmp_path: Path) -> None:
    empty = _start(tmp_path, STRONG)
    _start(tmp_path, STRONG, str(ROOT / "manage.py"), "db", "upgrade")
    without_log = _start(tmp_path, STRONG)

    assert empty.returncode == without_log.returncode == 1
    assert "manage.py db upgrade" in empty.stderr
    assert "manage.py audit init" in without_log.stderr


def test_gunicorn_alone_refuses_the_same_configuration(tmp_path: Path) -> None:
    command = ("-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "--check-config", "app:app")

    done = _start(tmp_path, {**PRODUCTION, "SECRET_KEY": "short"}, *command)

    assert done.returncode != 0
    assert "SECRET_KEY: is only 5 characters long" in done.stderr


def test_gunicorn_alone_refuses_a_models_file_with_mistakes(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.yaml").write_text("models:\n  m: {routes: [{provider: nobody, model: x}]}\n")
    command = ("-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "--check-config", "app:app")

    done = _start(tmp_path, STRONG, *command)

    assert done.returncode != 0
    assert "line 2: models.m.routes[0].provider there is no provider nobody" in done.stderr
    assert "Traceback" not in done.stderr
