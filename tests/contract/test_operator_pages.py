"""The operator's pages name what there is: commands with their options, scripts, units, settings, messages, error codes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from secure_llm_proxy.cli.program import program
from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings.loading import NOT_YET, known_settings
from secure_llm_proxy.vocabulary.events import EventName

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("operations.md", "troubleshooting.md", "deployment.md")]
OURS = ("secure-llm-proxy", "manage.py", ".venv/bin/python manage.py")
# The origins', and those of other programs.
FOREIGN_NAMES = {
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "REDISCLI_AUTH",
    "PONG",
    "WRONGPASS",
    "LOST",
    "UNMARKED",
    "KIND",
}
PLACES = {"/etc/systemd/system", "/etc/systemd/journald.conf"}


@pytest.fixture(params=PAGES, ids=lambda page: str(page.name))
def page(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, Path)
    return request.param.read_text("utf-8")


def spans(page: str) -> Iterator[str]:
    """Every piece of code: lines of fenced blocks without their comments, and what stands in backticks elsewhere."""
    outside: list[str] = []
    inside: list[str] = []
    for number, part in enumerate(re.split(r"^```.*$", page, flags=re.MULTILINE)):
        (inside if number % 2 else outside).append(part)
    for block in inside:
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"(^|\s)#.*", "", line).strip()
    for part in outside:
        yield from re.findall(r"`([^`\n]+)`", part.replace("\\|", "|"))


def commands(page: str) -> Iterator[list[str]]:
    """`manage.py` commands, as words behind the program's name."""
    for span in spans(page):
        for piece in re.split(r"\s*(?:&&|\||;|<|>)\s*", span):
            for name in OURS:
                if piece.startswith(f"{name} "):
                    yield shlex.split(piece.removeprefix(name))


def test_every_command_of_a_page_exists_with_its_options(page: str) -> None:
    found = list(commands(page))

    for words in found:
        command: click.Command = program
        context = click.Context(program)
        rest = list(words)
        while rest and isinstance(command, click.Group):
            wanted = command.get_command(context, rest.pop(0)) if rest[0] != "…" else None
            if wanted is None:
                assert words == ["…"], words
                break
            command = wanted
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options, words
    assert len(found) > 5


def test_every_script_of_a_page_exists_with_its_options(page: str) -> None:
    for span in spans(page):
        for path, rest in re.findall(r"(?:^|\s)(scripts/[a-z_/-]+(?:\.py)?)((?:\s+[^|;&]*)?)", span):
            script = ROOT / path
            assert script.is_file(), span
            text = script.read_text("utf-8")
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in text, span
    for option in re.findall(r"`(--[a-z-]+)[ `]", page):
        scripts = [path.read_text("utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()]
        assert any(option in text for text in scripts) or option in every_option(), option


@cache
def every_option() -> frozenset[str]:
    return frozenset(_options(program, click.Context(program)))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _options(found, context)


def test_every_unit_of_a_page_is_shipped(page: str) -> None:
    for unit in re.findall(r"\b(secure[-_]llm[a-z_-]*\.(?:service|socket|timer))\b", page):
        assert (ROOT / "deploy" / "systemd" / unit).is_file(), unit


def test_every_place_of_a_page_is_one_of_the_host(page: str) -> None:
    known = (ROOT / "scripts" / "lib" / "host.sh").read_text("utf-8") + (ROOT / "scripts" / "install").read_text(
        "utf-8"
    )
    places = re.findall(r"/(?:etc|opt|var/lib|var/log|var/backups|run)/[a-z_.-]+", page)

    for place in set(places) - PLACES:
        if not place.startswith(("/etc/redis", "/etc/nginx")):
            assert place.removesuffix(".releases").removesuffix(".") in known, place


def test_every_setting_of_a_page_is_a_setting(page: str) -> None:
    known = {name for setting in known_settings() for name in (setting.name, *setting.synonyms)}
    known |= FOREIGN_NAMES | set(NOT_YET) | set(EventName)

    for span in spans(page):
        for name in re.findall(r"^[A-Z][A-Z0-9_]{3,}(?==|$)", span):
            assert name in known, name


def test_every_error_code_and_every_shipped_sentence_of_the_troubleshooting_page_is_the_products() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    codes = page.partition("| code | usual cause")[2].partition("## It does not start")[0]
    sentences = page.partition("## It does not start")[2].partition("\n## ")[0]
    source = "".join(path.read_text("utf-8") for path in (ROOT / "secure_llm_proxy").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)

    listed = {code for row in codes.splitlines() for code in re.findall(r"`([a-z_]+)`", row.split(" | ")[0])}
    rows = [row for row in sentences.splitlines() if row.startswith("| `")]
    said = [span for row in rows for span in re.findall(r"`([^`]+)`", row.split(" | ")[0])]

    assert listed == {code.value for code in ErrorCode}
    assert len(said) > 20
    for span in said:
        if not span.startswith(("status=", "start request")):  # systemd's
            for fragment in re.split(r"…|N settings are", span):
                assert fragment.strip(" ;?.") in source, span
