"""A host on which commands are typed: settings, a migrated SQLite file, an audit writer and its log."""

from __future__ import annotations

import base64
import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from secure_llm_proxy.audit import initialise, running_writer
from secure_llm_proxy.cli.database_schema import run_migrations
from secure_llm_proxy.cli.program import main
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.settings import load_audit_writer_settings, load_settings


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended and what it said."""

    code: int
    output: str
    errors: str


@dataclass(frozen=True, slots=True)
class Installation:
    """A host with settings, a migrated SQLite file and an audit log whose bodies are readable (not sealed, unless told)."""

    directory: Path
    environment: dict[str, str]
    owner_key: str = ""
    owner_public_key: str = ""

    def run(self, *arguments: str, stdin: str = "") -> Ended:
        """`manage.py ARGUMENTS` in this process."""
        before = sys.argv
        sys.argv = ["manage.py", *arguments]
        code = 0
        try:
            with CliRunner().isolation(input=stdin, env=self.environment) as (output, errors, _):
                try:
                    main()
                except SystemExit as end:
                    code = int(end.code or 0)
                sys.stdout.flush()
                sys.stderr.flush()
                return Ended(code, output.getvalue().decode(), errors.getvalue().decode())
        finally:
            sys.argv = before

    def told(self, *arguments: str, stdin: str = "") -> dict[str, object]:
        """What a command that must succeed says as JSON."""
        ended = self.run(*arguments, "--json", stdin=stdin)
        assert ended.code == 0, ended.errors
        told = json.loads(ended.output)
        assert isinstance(told, dict)
        return told

    def listed(self, *arguments: str) -> list[dict[str, object]]:
        ended = self.run(*arguments, "--json")
        assert ended.code == 0, ended.errors
        listed = json.loads(ended.output)
        assert isinstance(listed, list)
        return listed

    def make_user(self, username: str, *more: str) -> dict[str, object]:
        return self.told("create-user", "--username", username, "--email", f"{username}@example.org", *more)

    def make_key(self, username: str, *more: str) -> dict[str, object]:
        return self.told("create-api-key", "--user", username, "--name", "ci", *more)

    def status_of(self, username: str) -> object:
        return next(user["status"] for user in self.listed("list-users") if user["username"] == username)

    def recorded(self, action: str, subject: object) -> list[tuple[dict[str, object], dict[str, object]]]:
        """Clear part and body of every record of that change, oldest first."""
        found = []
        for segment in sorted((self.directory / "instance" / "audit").rglob("0*.jsonl*")):
            for line in segment.read_text("utf-8").splitlines():
                record = json.loads(line)
                if record.get("act") == action and record.get("subject") == subject:
                    found.append((record, json.loads(base64.b64decode(record["pt"]))))
        return found

    def everything_written(self) -> bytes:
        """Every byte of every file, and every audit body once more in clear."""
        files = [path.read_bytes() for path in self.directory.rglob("*") if path.is_file()]
        bodies = [
            base64.b64decode(json.loads(line)["pt"])
            for segment in (self.directory / "instance" / "audit").rglob("0*.jsonl*")
            for line in segment.read_text("utf-8").splitlines()
            if "pt" in json.loads(line)
        ]
        return b"\n".join(files + bodies)


@contextmanager
def installation_in(directory: Path, **more: str) -> Iterator[Installation]:
    directory.mkdir()
    environment = {
        "SECRET_KEY": secrets.token_hex(32),
        "ENCRYPTION_KEY": secrets.token_hex(32),
        "AUDIT_KEK": secrets.token_hex(32),
        "AUDIT_ENCRYPTION_ENABLED": "false",
        "INSTANCE_DIR": str(directory / "instance"),
        "ENV_FILE": str(directory / "none"),
        # A busy disk is no fault.
        "AUDIT_PATIENCE_S": "30",
        **more,
    }
    settings = load_settings(environment)
    audit = load_audit_writer_settings(environment)
    genesis = initialise(audit)
    run_migrations(Database(settings.database).engine, "upgrade", "head")
    with running_writer(audit):
        yield Installation(directory, environment, genesis.owner_private_key or "", genesis.owner_public_key)


def fresh(word: str) -> str:
    """A name that no other test uses: they share one installation."""
    return f"{word}{secrets.token_hex(4)}"
