"""What is written for people is true: settings, error codes, endpoints, commands, links."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from secure_llm_proxy.cli.program import program
from secure_llm_proxy.cli.settings import configuration_page, env_example
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings import load_settings
from secure_llm_proxy.web.admin.operations import OPERATIONS, PREFIX
from secure_llm_proxy.web.doors import DOORS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_env_example_and_the_configuration_page_are_those_of_the_code() -> None:
    assert (ROOT / ".env.example").read_text("utf-8") == env_example()
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == configuration_page()


def test_the_env_example_with_every_line_in_force_is_a_valid_configuration(tmp_path: Path) -> None:
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    settings = [line[1:] for line in lines if re.match(r"#[A-Z][A-Z0-9_]+=", line)]
    path = tmp_path / "all.env"
    path.write_text("\n".join([*settings, f"SECRET_KEY={'s3cr3t' * 6}", f"ENCRYPTION_KEY={'k3y0' * 9}"]), "utf-8")

    loaded = load_settings({}, env_file=path)

    assert loaded.server.port == 5000


def test_every_error_code_is_documented_and_no_other() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    table = page.partition("| code | status | meaning |")[2]

    documented = set(re.findall(r"^\| `([a-z_0-9]+)` \|", table, re.MULTILINE))

    assert documented == {code.value for code in ErrorCode}


def test_every_door_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")

    for door in DOORS:
        path = re.sub(r"<(\w+)>", r"{\1}", door.path.replace("<path:model>", "{id}"))
        assert f"`{door.method} {path}`" in page, door


def test_every_operation_of_the_management_api_stands_in_its_table() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")

    for operation in OPERATIONS:
        path = PREFIX + re.sub(r"<(\w+)>", r"{\1}", operation.path)
        who = "anyone logged in" if operation.permission is None else f"`{operation.permission}`"
        step_up = "yes" if operation.step_up else "no"
        assert f"| `{operation.method} {path}` | {who} | {step_up} | {operation.summary} |" in page


def test_every_command_of_the_contract_exists_and_every_documented_one_too() -> None:
    promised = {
        "db", "create-admin", "create-user", "list-users", "reset-password", "lock-user", "unlock-user", "create-api-key",
        "list-api-keys", "revoke-api-key", "serve", "show-status", "show-events", "doctor", "audit",
    }  # fmt: skip
    written = {name for page in PAGES for name in re.findall(r"manage\.py ([a-z][a-z-]+)", page.read_text("utf-8"))}

    commands = set(program.list_commands(click.Context(program)))
    assert promised <= commands
    assert written <= commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target
