"""The list of commands, and what a command imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from secure_llm_proxy.cli.program import COMMANDS, HIDDEN_COMMANDS, program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_list_says_of_each_command_what_the_command_says_of_itself(width: int) -> None:
    context = click.Context(program, info_name="manage.py", max_content_width=width, terminal_width=width)
    commands = {name: program.get_command(context, name) for name in COMMANDS}
    imported = click.Group(commands={name: command for name, command in commands.items() if command is not None})

    listed = program.get_help(context)
    expected = imported.get_help(click.Context(imported, max_content_width=width, terminal_width=width))

    assert listed.partition("Commands:")[2] == expected.partition("Commands:")[2] != ""


def test_what_programs_ask_is_there_and_not_listed() -> None:
    context = click.Context(program)

    for name in HIDDEN_COMMANDS:
        command = program.get_command(context, name)
        assert command is not None
        assert command.hidden
        assert command.name == name


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (["--help"], {"pydantic", "sqlalchemy", "alembic", "gevent"}),
        (["serve", "--help"], {"sqlalchemy", "alembic", "flask", "gunicorn", "argon2"}),
    ],
)
def test_nothing_is_imported_that_the_command_does_not_use(arguments: list[str], never: set[str]) -> None:
    code = (
        "import sys; from secure_llm_proxy.cli.program import main\n"
        "try: main()\nfinally: sys.stderr.write(' '.join(sys.modules))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    assert "Usage:" in done.stdout
    assert set(done.stderr.split()) & never == set()


def test_what_a_setting_is_here_is_told_by_any_of_its_names_and_secrets_are_not(tmp_path: Path) -> None:
    secrets = {"SECRET_KEY": "s3cr3t" * 6, "ENCRYPTION_KEY": "k3y0" * 9}
    (tmp_path / "env").write_text("MAX_CONTENT_LENGTH=5000000\n", "utf-8")
    names = ("MAX_REQUEST_SIZE", "WEB_CONCURRENCY")

    told = settings_values(tmp_path, *names, **secrets)
    secret = settings_values(tmp_path, "SECRET_KEY", **secrets)

    assert (told.returncode, told.stdout) == (0, "MAX_REQUEST_SIZE=5000000\nWEB_CONCURRENCY=1\n")
    assert (secret.returncode, secret.stdout) == (1, "")
    assert "s3cr3t" not in secret.stderr


def settings_values(folder: Path, *names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "manage.py"),
        "settings",
        *(word for name in names for word in ("--value", name)),
    ]
    return subprocess.run(
        command, cwd=folder, env={"ENV_FILE": str(folder / "env"), **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--format", "json"]])
def test_output_that_meets_a_full_disk_is_told_in_a_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr == (
        "Error: No space left on device: the output, or a file, could not be written whole. What was asked for may be done "
        "all the same; look before you repeat it.\n"
    )
