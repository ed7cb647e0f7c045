"""Commands about users and keys, as an operator types them: real settings, database, audit writer and log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, draw_api_key, kid_of
from tests.support.installation import Ended, Installation, fresh, installation_in
from tests.support.redis_server import PrivateRedis

ROOT = Path(__file__).resolve().parents[2]
PASSPHRASE = "violet tram over nine hedges"
OTHER_PASSPHRASE = "green ferry under two bridges"


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "cli") as installation:
        # The first administrator becomes owner, and is none of those that tests make.
        installation.told("create-admin", "--username", "owner", "--email", "owner@example.org")
        yield installation


def test_an_administrator_without_a_password_gets_a_token_that_sets_one_once(host: Installation) -> None:
    name = fresh("root")
    made = host.told("create-admin", "--username", name, "--email", "root@example.org")
    token = str(made["setup_token"])

    first = host.run("setup-password", "--token-stdin", "--password-stdin", stdin=f"{token}\n{PASSPHRASE}\n")
    again = host.run("setup-password", "--token-stdin", "--password-stdin", stdin=f"{token}\n{PASSPHRASE}\n")

    assert (made["role"], made["has_password"]) == ("admin", False)
    assert first == Ended(0, f"The password of {name} is set; the token is used up.\n", "")
    assert again.code == 1
    assert "not valid" in again.errors
    (user,) = [user for user in host.listed("list-users") if user["username"] == name]
    assert user["has_password"] is True


def test_a_token_is_asked_for_and_the_password_twice_when_nothing_else_is_said(host: Installation) -> None:
    name = fresh("root")
    token = str(host.told("create-admin", "--username", name, "--email", "root@example.org")["setup_token"])

    ended = host.run("setup-password", stdin=f"{token}\n{PASSPHRASE}\n{PASSPHRASE}\n")

    assert ended.code == 0
    assert token not in ended.output + ended.errors
    assert PASSPHRASE not in ended.output + ended.errors


@pytest.mark.parametrize(
    ("more", "stdin", "warns"),
    [
        (("--password-stdin",), f"{PASSPHRASE}\n", False),
        (("--password-stdin",), f"{PASSPHRASE}\r\n", False),
        (("--set-password",), f"{PASSPHRASE}\n{PASSPHRASE}\n", False),
        (("--password", PASSPHRASE), "", True),
    ],
)
def test_an_administrator_with_a_password_is_ready(
    host: Installation, more: tuple[str, ...], stdin: str, *, warns: bool
) -> None:
    made = host.run("create-admin", "--username", fresh("root"), "--email", "root@example.org", *more, stdin=stdin)

    assert made.code == 0
    assert "password set" in made.output
    assert "slp_setup_" not in made.output
    assert ("--password-stdin does not" in made.errors) is warns


def test_two_ways_to_give_one_password_are_a_usage_error(host: Installation) -> None:
    ended = host.run(
        "create-admin", "--username", "x", "--email", "x@y", "--password", PASSPHRASE, "--password-stdin", stdin="x\n"
    )

    assert ended.code == 2
    assert "exclude each other" in ended.errors


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (("create-user", "--username", "a b", "--email", "x@y"), "", "username"),
        (("create-user", "--username", "eve", "--email", "nonsense"), "", "e-mail"),
        (("create-user", "--username", "eve", "--email", "x@y", "--role", "king"), "", "owner, admin"),
        (("create-user", "--username", "eve", "--email", "x@y", "--password-stdin"), "short\n", "too short"),
        (("create-user", "--username", "eve", "--email", "x@y", "--password-stdin"), "", "No password"),
        (("create-user", "--username", "eve", "--email", "x@y", "--password-stdin"), "\udcff" * 20, "not UTF-8"),
        (("create-user", "--username", "eve", "--email", "x@y", "--password-stdin"), "a" * 70_000, "more than"),
        (("lock-user", "--username", "nobody", "--yes"), "", "no user"),
        (("reset-password", "--username", "nobody"), "", "no user"),
        (("setup-password", "--token", "wrong", "--password-stdin"), f"{PASSPHRASE}\n", "not valid"),
        (("create-api-key", "--user", "nobody", "--name", "x"), "", "no user"),
        (("list-api-keys", "--user", "nobody"), "", "no user"),
        (("revoke-api-key", "abcdefgh", "--yes"), "", "no API key"),
        (("revoke-api-key", "--key-id", "key_X", "--yes"), "", "no API key"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_on_standard_error_and_exit_1(
    host: Installation, arguments: tuple[str, ...], stdin: str, says: str
) -> None:
    if "\udcff" in stdin:
        process = subprocess.run(
            [sys.executable, ROOT / "manage.py", *arguments],
            input=stdin.encode("utf-8", "surrogateescape"),
            capture_output=True,
            env={**os.environ, **host.environment},
            cwd=host.directory,
            timeout=60,
            check=False,
        )
        ended = Ended(process.returncode, process.stdout.decode(), process.stderr.decode())
    else:
        ended = host.run(*arguments, stdin=stdin)

    assert ended.code == 1
    assert ended.output == ""
    assert says in ended.errors
    assert ended.errors.startswith("Error: ")
    assert len(ended.errors.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("create-admin", "--username", "x"),
        ("create-user", "--email", "x@y"),
        ("create-api-key", "--user", "x"),
        ("create-api-key", "--user", "x", "--name", "x", "--expires", "soon"),
        ("revoke-api-key",),
        ("revoke-api-key", "abcdefgh", "--key-id", "abcdefgh"),
        ("setup-password", "--token", "x", "--token-stdin"),
        ("list-users", "--bogus"),
    ],
)
def test_a_command_typed_wrongly_is_exit_2(host: Installation, arguments: tuple[str, ...]) -> None:
    ended = host.run(*arguments)

    assert ended.code == 2
    assert ended.output == ""
    assert "Error" in ended.errors


def test_users_are_listed_as_a_table_and_as_json(host: Installation) -> None:
    name = fresh("user")
    made = host.make_user(name, "--role", "readonly")

    table = host.run("list-users").output.splitlines()
    (listed,) = [user for user in host.listed("list-users") if user["username"] == name]

    assert table[0].split() == ["USERNAME", "ROLE", "STATUS", "ORGANISATION", "PASSWORD", "E-MAIL", "CREATED", "ID"]
    assert any(name in line and "viewer" in line and "not set" in line and str(made["id"]) in line for line in table)
    assert listed["role"] == "viewer"
    assert str(listed["created_at"]).endswith("Z")
    assert set(listed) == {
        "id", "username", "email", "role", "status", "has_password", "created_at", "updated_at", "organisation_id", "version",
        "mfa_required",
    }  # fmt: skip
    assert (listed["organisation_id"], listed["version"]) == (DEFAULT_ORGANISATION_ID, 1)


@pytest.mark.parametrize("flag", ["--user", "--username"])
def test_a_key_is_made_with_both_spellings_and_shown_once(host: Installation, flag: str) -> None:
    name = fresh("user")
    host.make_user(name)

    made = host.run(
        "create-api-key", flag, name.upper(), "--name", "my laptop", "--expires", "365",
        "--permissions", "chat_access", "--models", "gpt-4o,demo", "--models", "other", "--rpm", "12",
    )  # fmt: skip
    (listed,) = host.listed("list-api-keys", flag, name)

    secret = made.output.split()[-1]
    assert made.code == 0
    assert kid_of(secret) == listed["kid"]
    assert (listed["scopes"], listed["models"]) == (["chat"], ["gpt-4o", "demo", "other"])
    assert (listed["requests_per_minute"], listed["status"], listed["last_used_at"]) == (12, "active", None)
    assert "digest" not in listed
    assert secret not in host.run("list-api-keys").output + host.run("list-api-keys", "--json").output


def test_keys_are_listed_as_a_table(host: Installation) -> None:
    name = fresh("user")
    host.make_user(name)
    empty = host.run("list-api-keys", "--user", name).output
    key = host.make_key(name)

    table = host.run("list-api-keys", "--user", name).output.splitlines()

    assert "create-api-key" in empty
    assert table[0].split()[:5] == ["KEY", "USER", "NAME", "KIND", "STATUS"]
    assert table[1].split()[:7] == [str(key["kid"]), name, "ci", "live", "active", "chat,models", "all"]


def test_a_revoked_key_is_listed_as_revoked_and_revoking_again_is_no_error(host: Installation) -> None:
    name = fresh("user")
    host.make_user(name)
    by_kid, by_id = host.make_key(name), host.make_key(name)

    first = host.run("revoke-api-key", str(by_kid["kid"]), "--yes")
    second = host.run("revoke-api-key", "--key-id", str(by_id["id"]), stdin="y\n")
    again = host.run("revoke-api-key", str(by_kid["kid"]), "--yes")

    assert (first.code, second.code, again.code) == (0, 0, 0)
    assert "already" in again.output
    assert {key["status"] for key in host.listed("list-api-keys", "--user", name)} == {"revoked"}


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_nothing_is_revoked_or_locked_without_a_yes(host: Installation, answer: str) -> None:
    name = fresh("user")
    host.make_user(name)
    key = host.make_key(name)

    revoking = host.run("revoke-api-key", str(key["kid"]), stdin=answer)
    locking = host.run("lock-user", "--username", name, stdin=answer)

    assert (revoking.code, locking.code) == (1, 1)
    assert "Nothing was changed" in revoking.errors
    assert host.status_of(name) == "active"
    assert host.listed("list-api-keys", "--user", name)[0]["status"] == "active"


def test_a_user_is_locked_and_unlocked(host: Installation) -> None:
    name = fresh("user")
    made = host.make_user(name)

    host.run("lock-user", "--username", name, "--yes")
    locked = host.status_of(name)
    key = host.run("create-api-key", "--user", name, "--name", "x")
    host.run("unlock-user", "--username", name)

    assert locked == "locked"
    assert (key.code, "unlock" in key.errors) == (1, True)
    assert host.status_of(name) == "active"
    assert [record["ty"] for record, _ in host.recorded("user.lock", made["id"])] == ["admin.intent", "admin.result"]
    assert len(host.recorded("user.unlock", made["id"])) == 2


def test_a_password_is_reset_by_token_or_set_from_standard_input(host: Installation) -> None:
    name = fresh("user")
    made = host.make_user(name)

    token = host.told("reset-password", "--username", name)["setup_token"]
    set_here = host.told("reset-password", "--username", name, "--password-stdin", stdin=PASSPHRASE)
    overtaken = host.run("setup-password", "--token", str(token), "--password-stdin", stdin=OTHER_PASSPHRASE)

    assert set_here["has_password"] is True
    assert "setup_token" not in set_here
    assert overtaken.code == 1
    assert len(host.recorded("user.password_reset", made["id"])) == 2
    assert [record["with"] for record, _ in host.recorded("user.password_set", made["id"])] == ["host", "host"]


def test_every_change_is_recorded_before_and_after_with_names_only_in_the_body(host: Installation) -> None:
    name = fresh("user")
    user = host.make_user(name)
    key = host.make_key(name, "--models", "demo")
    host.run("revoke-api-key", str(key["kid"]), "--yes")

    for action, subject in (("user.create", user["id"]), ("key.create", key["kid"]), ("key.revoke", key["kid"])):
        (intent, body), (result, _) = host.recorded(action, subject)
        assert (intent["ty"], result["ty"], result["ok"]) == ("admin.intent", "admin.result", True)
        assert intent["rid"] == result["rid"]
        assert intent["ev"] == "ADMIN_CHANGE"
        assert body["username"] == name
        assert name not in json.dumps(intent)
    assert host.recorded("key.create", key["kid"])[0][1]["models"] == ["demo"]


def test_a_change_that_fails_is_recorded_as_failed(host: Installation) -> None:
    name = fresh("user")
    user = host.make_user(name)
    for _ in range(5):
        host.make_key(name)

    ended = host.run("create-api-key", "--user", name, "--name", "one too many")

    assert (ended.code, "revoke one first" in ended.errors) == (1, True)
    assert len(host.listed("list-api-keys", "--user", name)) == 5
    audit = (host.directory / "instance" / "audit").rglob("0*.jsonl*")
    lines = [json.loads(line) for segment in sorted(audit) for line in segment.read_text("utf-8").splitlines()]
    # The log says something by itself, too: checkpoints.
    last = [line for line in lines if "act" in line][-1]
    assert (last["act"], last["user"], last["ok"]) == ("key.create", user["id"], False)


def test_nothing_is_changed_when_the_intent_cannot_be_recorded(host: Installation, short_folder: Path) -> None:
    name = fresh("user")
    # No writer listens there, and the log that one would write to does not exist.
    nowhere = {"AUDIT_SOCKET": str(short_folder / "no.sock"), "AUDIT_DIR": str(short_folder / "no-audit")}
    unrecorded = Installation(host.directory, {**host.environment, **nowhere})

    ended = unrecorded.run("create-user", "--username", name, "--email", "x@example.org")

    assert ended.code == 1
    assert ended.output == ""
    assert name not in {user["username"] for user in host.listed("list-users")}


def test_no_password_token_or_key_is_written_anywhere(host: Installation) -> None:
    name = fresh("user")
    host.told("create-user", "--username", name, "--email", "x@example.org", "--password-stdin", stdin=PASSPHRASE)
    host.run("reset-password", "--username", name, "--password", OTHER_PASSPHRASE)
    used = host.told("reset-password", "--username", name)["setup_token"]
    final = "a third phrase with seven words"
    host.run("setup-password", "--token-stdin", "--password-stdin", stdin=f"{used}\n{final}")
    unused = host.told("reset-password", "--username", name)["setup_token"]
    key = str(host.make_key(name)["key"])
    refused = host.run("revoke-api-key", key, "--yes")
    short = host.run("reset-password", "--username", name, "--password", "tooshort-9173")

    written = host.everything_written()
    assert name.encode() in written
    for secret in (PASSPHRASE, OTHER_PASSPHRASE, final, str(used)[10:], str(unused)[10:], key, key[18:50]):
        assert secret.encode() not in written
    assert key[18:] not in refused.output + refused.errors
    assert "tooshort-9173" not in short.output + short.errors


def test_names_cannot_move_the_terminals_cursor(host: Installation) -> None:
    name = fresh("user")
    host.make_user(name)

    ended = host.run("create-api-key", "--user", name, "--name", "x\x1b[2Jy")
    unknown = host.run("list-api-keys", "--user", "\x1b]0;title\x07")

    assert (ended.code, unknown.code) == (1, 1)
    assert "\x1b" not in ended.errors + unknown.errors


def test_a_stranger_typing_a_whole_key_is_told_its_public_part(host: Installation) -> None:
    drawn = draw_api_key()

    ended = host.run("revoke-api-key", "--key-id", drawn.secret, "--yes")

    assert ended.code == 1
    assert drawn.kid in ended.errors
    assert drawn.secret not in ended.errors


def test_revoking_locking_and_unlocking_are_announced_over_redis(short_folder: Path) -> None:
    # One of its own: a proxy that shares the run's Redis may announce something there, too.
    with (
        PrivateRedis(password="correct-horse-battery") as redis_server,
        installation_in(short_folder / "announcing", REDIS_URL=redis_server.url) as host,
        redis_server.client() as client,
        client.pubsub(ignore_subscribe_messages=True) as subscription,
    ):
        host.make_user("alice")
        key = str(host.make_key("alice")["kid"])
        subscription.subscribe("slp:revoked")
        subscription.get_message(timeout=10)

        host.run("lock-user", "--username", "alice", "--yes")
        host.run("unlock-user", "--username", "alice")
        host.run("revoke-api-key", key, "--yes")

        heard = [subscription.get_message(timeout=10) for _ in range(3)]
        assert [message and message["data"] for message in heard] == [key] * 3


def test_the_program_itself_ends_with_the_same_codes(host: Installation) -> None:
    """Through a shell's eyes: a process of its own, its streams and status."""
    environment = {**os.environ, **host.environment}
    command = [sys.executable, "-W", "error", str(ROOT / "manage.py")]

    ends = [
        subprocess.run(
            [*command, *arguments], env=environment, cwd=host.directory, capture_output=True, timeout=60, check=False
        )
        for arguments in (("list-users", "--json"), ("lock-user", "--username", "nobody"), ("list-users", "--what"))
    ]

    assert [end.returncode for end in ends] == [0, 1, 2]
    assert isinstance(json.loads(ends[0].stdout), list)
    assert ends[1].stderr.decode().startswith("Error: There is no user")
