"""How commands speak and ask: tables or JSON on standard output, warnings and questions on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime

import click
import orjson

from secure_llm_proxy.foundation.clock import rfc3339
from secure_llm_proxy.foundation.errors import OperatorError

_SECRET_BYTES_MAX = 64 * 1024

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def show_json(value: object) -> None:
    """One JSON document; times as RFC 3339 in UTC, everything beyond ASCII as it is, no control character unescaped."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATETIME, default=_as_json))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Left-aligned columns two spaces apart under their names in capitals; the sentence `empty` when there is no row."""
    if not rows:
        click.echo(empty)
        return
    lines = [[column.upper() for column in columns], *([as_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def as_cell(value: object) -> str:
    """A value as a person reads it. Whatever could move the terminal's cursor is escaped."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)


def warn(sentence: str) -> None:
    click.echo(f"Warning: {sentence}", err=True)


def confirm(question: str, *, yes: bool) -> None:
    """Return when the operator said yes, by answer or by --yes; else raise `OperatorError`, and nothing was changed."""
    if yes:
        return
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)  # the question's line is still open
        raise OperatorError("Nothing was changed: nobody answered the question; add --yes to do without it.") from None
    if not agreed:
        raise OperatorError("Nothing was changed.")


class SecretInput:
    """Secrets from standard input, line by line: never from an argument, which the process list would show."""

    def __init__(self) -> None:
        self._lines: list[str] | None = None

    def read(self, what: str) -> str:
        """The next line without its end. Raises `OperatorError` naming `what` when there is none."""
        if self._lines is None:
            self._lines = _read_bounded().split("\n")
        line = self._lines.pop(0).removesuffix("\r") if self._lines else ""
        if not line:
            raise OperatorError(f"No {what} came on standard input; give it there as one line.")
        return line

    def read_all(self, what: str) -> list[str]:
        """The lines that are left, without empty ones. Raises `OperatorError` naming `what` when there is none."""
        lines = [self.read(what)]
        lines += [line.removesuffix("\r") for line in self._lines or () if line.strip()]
        self._lines = []
        return lines


def ask_new_password() -> str:
    """A password typed twice without echo."""
    return click.prompt("New password", hide_input=True, confirmation_prompt="The same again", err=True)


def _read_bounded() -> str:
    raw = sys.stdin.buffer.read(_SECRET_BYTES_MAX + 1)
    if len(raw) > _SECRET_BYTES_MAX:
        raise OperatorError(f"Standard input holds more than {_SECRET_BYTES_MAX} bytes; give one line with the secret.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise OperatorError("Standard input is not UTF-8 text; give the secret as one line of UTF-8.") from None


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value)
    raise TypeError(type(value).__name__)
