"""Seeded secrets turn up nowhere in clear: not in logs, metrics, errors, files or database columns (A13, A16)."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

from tests.conftest import ROOMY
from tests.support.clients import ask
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.provider import Mode, Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy


def _canary(kind: str) -> str:
    return f"canary-{kind}-{secrets.token_hex(12)}"


def test_no_seeded_secret_is_found_anywhere_in_clear(
    postgresql: PrivatePostgreSQL, redis_server: PrivateRedis, short_folder: Path
) -> None:
    provider_key, password, prompt, person, reply = (
        _canary(kind) for kind in ("provider", "password", "prompt", "person", "reply")
    )
    database = postgresql.create_database()
    with Provider(reply_text=reply) as provider:
        settings = {
            **ROOMY,
            "LLM_API_URL": provider.base_url,
            "LLM_API_KEY": provider_key,
            "DATABASE_URL": database,
            "REDIS_URL": redis_server.url,
            "WORKERS": "2",
            "LOG_LEVEL": "DEBUG",
        }
        told = bytearray()
        with RunningProxy(short_folder / "canaries", settings) as proxy:
            command = ("create-user", "--username", "carol", "--email", "carol@example.org", "--role", "member")
            created = proxy.command(*command, "--password-stdin", stdin=password + "\n")
            key = proxy.create_api_key("carol")
            for mode in (Mode.OK, Mode.UNAUTHORIZED, Mode.ERROR, Mode.INVALID_JSON, Mode.EARLY_CLOSE, Mode.ERROR_EVENT):
                for stream in (False, True):
                    provider.script(mode)
                    answer = ask(
                        proxy,
                        "POST",
                        "/chat",
                        key=key,
                        body={"prompt": prompt, "stream": stream, "user": person},
                        headers={"X-User-ID": person},
                    )
                    told += answer.body.replace(reply.encode(), b"")
            provider.clear()
            for body in (b'{"prompt":"' + prompt.encode(), f'{{"prompt":["{prompt}"]}}'.encode(), prompt.encode()):
                told += ask(proxy, "POST", "/chat", key=key, body=body).body
            told += ask(proxy, "POST", f"/chat?key={key}", key=key, body={"prompt": prompt}).body
            told += ask(proxy, "GET", f"/{prompt}", key=key).body
            told += ask(proxy, "GET", "/metrics").body + ask(proxy, "GET", "/security/status").body
            told += ask(proxy, "GET", "/health").body
            told += (created.stdout + created.stderr + proxy.command("list-api-keys", "--json").stdout).encode()
            told += proxy.command("show-status", check=False).stdout.encode()
            told += proxy.command("doctor", check=False).stdout.encode()
            told += proxy.command("audit", "cat").stdout.encode()
            told += proxy.log_text().encode()
        files = {path: path.read_bytes() for path in short_folder.joinpath("canaries").rglob("*") if path.is_file()}
        dump = _dump(postgresql, database)

    own = [proxy.environment[name] for name in ("SECRET_KEY", "ENCRYPTION_KEY", "AUDIT_KEK")]
    for canary in (provider_key, password, prompt, person, reply, key, key.split("_")[3], *own):
        found = [str(path) for path, content in files.items() if canary.encode() in content]
        assert found == [], canary
        assert canary.encode() not in told, canary
        assert canary.encode() not in dump, canary


def _dump(postgresql: PrivatePostgreSQL, database: str) -> bytes:
    done = subprocess.run(
        ["pg_dump", "--data-only", "--inserts", database.replace("postgresql+psycopg2", "postgresql")],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert b"carol" in done.stdout
    return done.stdout
