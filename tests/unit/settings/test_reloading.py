"""Settings that changed while a server runs: what it takes, and what it says is left to its next start."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_llm_proxy.settings import SettingsError, reload_settings, start_settings

_BASE = {
    "SECRET_KEY": "9f2c1d7be04a63588c1f0d2e7ab4963055ee12aa7c04bd81",
    "ENCRYPTION_KEY": "0b8e4d1f92c7a6350d4e8b1c7f29a6d35e0c4b8f17d2a693",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def test_it_takes_what_it_can_and_keeps_the_rest_as_it_was(file: Path) -> None:
    file.write_text("PORT=5001\nINSTANCE_DIR=/srv/one\nLOG_LEVEL=INFO\n")
    running = start_settings(_BASE, env_file=file)
    file.write_text("PORT=5002\nINSTANCE_DIR=/srv/two\nLOG_LEVEL=DEBUG\nBIND=unix:/a/socket\nAUDIT_PATIENCE_S=5\n")

    changed = reload_settings(running, _BASE, env_file=file)

    assert changed.waiting == ("AUDIT_PATIENCE_S", "BIND", "INSTANCE_DIR", "PORT")
    assert changed.settings.telemetry.log_level == "DEBUG"
    assert changed.settings.server == running.settings.server
    assert changed.settings.database == running.settings.database
    assert changed.settings.audit == running.settings.audit


def test_what_waits_is_told_at_each_reload_and_no_more_when_it_is_taken_back(file: Path) -> None:
    running = start_settings(_BASE, env_file=file)
    file.write_text("BIND=unix:/a/socket\n")

    once = reload_settings(running, _BASE, env_file=file)
    twice = reload_settings(once, _BASE, env_file=file)
    file.unlink()
    back = reload_settings(twice, _BASE, env_file=file)

    assert [once.waiting, twice.waiting, back.waiting] == [("BIND",), ("BIND",), ()]
    assert back.settings == running.settings


def test_a_line_that_systemd_has_put_into_the_environment_counts_from_the_next_start(file: Path) -> None:
    environ = {**_BASE, "LOG_LEVEL": "INFO", "LOG_FORMAT": "json"}
    file.write_text("LOG_LEVEL=INFO\nLOG_FORMAT=text\n")
    running = start_settings(environ, env_file=file)
    file.write_text("LOG_LEVEL=DEBUG\nLOG_FORMAT=json\n")

    changed = reload_settings(running, environ, env_file=file)

    # What stands otherwise in the environment would not count after a start either.
    assert changed.waiting == ("LOG_LEVEL",)
    assert changed.settings == running.settings


@pytest.mark.parametrize(
    "wrong",
    [
        "LOG_LEVEL=LOUD",
        "BIND=tcp:somewhere",
        # Right for a start; but the database that several workers need is the next start's.
        "WORKERS=2\nREDIS_URL=redis://localhost/0\nDATABASE_URL=postgresql://a:b@localhost/c",
    ],
)
def test_wrong_settings_are_refused(file: Path, wrong: str) -> None:
    running = start_settings(_BASE, env_file=file)
    file.write_text(wrong + "\n")

    with pytest.raises(SettingsError) as refused:
        reload_settings(running, _BASE, env_file=file)

    assert refused.value.mistakes
