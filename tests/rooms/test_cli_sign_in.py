"""Commands about passwords, second factors and sessions, as an operator types them."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyotp
import pytest

from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.secret_values import derive_key
from secure_llm_proxy.identity import OpenedSession, Sessions
from secure_llm_proxy.settings import load_settings
from tests.support.installation import Installation, installation_in

PASSPHRASE = "violet tram over nine hedges"
ROOT = Path(__file__).resolve().parents[2]
_SECRET = re.compile(r"(?:[A-Z2-7]{4} ){7}[A-Z2-7]{4}")
_RECOVERY_CODE = re.compile(r"(?:[A-Z2-7]{4}-){5}[A-Z2-7]{4}")
OTHER_PASSPHRASE = "green ferry under two bridges"


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "cli-sign-in") as installation:
        yield installation


def fresh(word: str) -> str:
    """A name that no other test uses: they share one installation."""
    return f"{word}{secrets.token_hex(4)}"


def open_session(host: Installation, user: dict[str, object]) -> OpenedSession:
    """As a sign-in does."""
    settings = load_settings(host.environment)
    database = Database(settings.database)
    pepper = derive_key(host.environment["SECRET_KEY"], "slp/session-pepper")
    sessions = Sessions(settings.identity, SystemClock(), pepper=pepper)
    try:
        return database.run(
            lambda session: sessions.open(
                session,
                str(user["id"]),
                kind="token",
                state="active",
                address="192.0.2.7",
                agent="tests/1",
                second_factor_at=None,
            )
        )
    finally:
        database.close()


def make_user(host: Installation, *more: str) -> dict[str, object]:
    return host.told(
        "create-user", "--username", fresh("u"), "--email", "u@example.org", "--password-stdin", *more,
        stdin=f"{PASSPHRASE}\n",
    )  # fmt: skip


def enrol(host: Installation, name: str) -> tuple[str, list[str]]:
    """Answer `enroll-mfa` as a person does: its question comes after the secret. Returns secret and recovery codes."""
    command = [sys.executable, "manage.py", "enroll-mfa", "--username", name]
    environment = {**os.environ, **host.environment}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as dialogue:
        assert dialogue.stdin is not None
        assert dialogue.stdout is not None
        for line in dialogue.stdout:
            if (shown := _SECRET.search(line)) is not None:
                break
        assert shown is not None
        secret = shown[0].replace(" ", "")
        dialogue.stdin.write(pyotp.TOTP(secret).now() + "\n")
        dialogue.stdin.close()
        told = dialogue.stdout.read()
    assert dialogue.returncode == 0
    return secret, _RECOVERY_CODE.findall(told)


def sessions_of(host: Installation, name: object) -> list[dict[str, object]]:
    return host.listed("list-sessions", "--username", str(name))


def test_a_password_is_changed_by_showing_the_old_one(host: Installation) -> None:
    user = make_user(host)
    name = str(user["username"])
    open_session(host, user)

    wrong = host.run("change-password", "--username", name, "--password-stdin", stdin=f"nope\n{OTHER_PASSPHRASE}\n")
    kept = sessions_of(host, name)
    right = host.run(
        "change-password", "--username", name, "--password-stdin", "--json", stdin=f"{PASSPHRASE}\n{OTHER_PASSPHRASE}\n"
    )
    again = host.run(
        "change-password", "--username", name, "--password-stdin", stdin=f"{PASSPHRASE}\n{OTHER_PASSPHRASE}\n"
    )

    assert (wrong.code, right.code, again.code) == (1, 0, 1)
    assert "not the password" in wrong.errors
    assert (len(kept), sessions_of(host, name)) == (1, [])
    recorded = host.recorded("user.password_set", user["id"])
    assert [clear.get("ok") for clear, _ in recorded] == [None, False, None, True, None, False]
    assert {clear["with"] for clear, _ in recorded} == {"old password"}


def test_both_passwords_are_asked_for_without_echo(host: Installation) -> None:
    user = make_user(host)

    ended = host.run(
        "change-password", "--username", str(user["username"]),
        stdin=f"{PASSPHRASE}\n{OTHER_PASSPHRASE}\n{OTHER_PASSPHRASE}\n",
    )  # fmt: skip

    assert ended.code == 0
    assert OTHER_PASSPHRASE not in ended.output + ended.errors


def test_a_new_password_obeys_the_rules(host: Installation) -> None:
    user = make_user(host)

    ended = host.run(
        "change-password", "--username", str(user["username"]), "--password-stdin", stdin=f"{PASSPHRASE}\nshort\n"
    )

    assert ended.code == 1
    assert "too short: at least 15" in ended.errors


def test_who_must_have_a_second_factor_may_have_a_shorter_password(host: Installation) -> None:
    twelve = "nine hedges!"

    made = host.run(
        "create-user", "--username", fresh("u"), "--email", "u@example.org", "--mfa", "--password-stdin",
        stdin=f"{twelve}\n",
    )  # fmt: skip
    refused = host.run(
        "create-user", "--username", fresh("u"), "--email", "u@example.org", "--no-mfa", "--password-stdin",
        stdin=f"{twelve}\n",
    )  # fmt: skip

    assert (made.code, refused.code) == (0, 1)
    assert "at least 15" in refused.errors


def test_no_mfa_is_refused_where_the_setting_asks_for_it(host: Installation) -> None:
    ended = host.run("create-user", "--username", fresh("u"), "--email", "u@e.org", "--role", "admin", "--no-mfa")

    assert ended.code == 1
    assert "MFA_REQUIRED" in ended.errors


def test_users_tell_whether_they_owe_a_second_factor_of_themselves(host: Installation) -> None:
    users = [host.make_user(fresh("u"), *more) for more in (("--mfa",), ("--no-mfa",), ())]

    assert [user["mfa_required"] for user in users] == [True, False, False]


def test_a_second_factor_is_begun_by_a_code_to_scan_and_counts_after_a_right_code_only(host: Installation) -> None:
    user = make_user(host)
    name = str(user["username"])

    ended = host.run("enroll-mfa", "--username", name, stdin="123\nabcdef\n      \n")

    assert ended.code == 1
    assert "\u2588" in ended.output
    assert _SECRET.search(ended.output)
    assert "code is not right" in ended.errors
    assert [clear.get("ok") for clear, _ in host.recorded("user.mfa_enrol", user["id"])] == [None, False] * 3
    assert host.told("reset-mfa", "--username", name, "--yes") == {"username": name, "removed": True}


def test_a_second_factor_is_enrolled_reset_and_enrolled_again(host: Installation) -> None:
    user = make_user(host)
    name = str(user["username"])
    open_session(host, user)

    secret, codes = enrol(host, name)
    second = host.run("enroll-mfa", "--username", name)
    after_enrolment = sessions_of(host, name)
    open_session(host, user)
    reset = host.run("reset-mfa", "--username", name, stdin="y\n")

    assert len(codes) == 10
    assert second.code == 1
    assert "already" in second.errors
    assert after_enrolment == []
    assert reset.code == 0
    assert sessions_of(host, name) == []
    assert [clear.get("ok") for clear, _ in host.recorded("user.mfa_reset", user["id"])] == [None, True]
    everything = host.everything_written()
    assert secret.encode() not in everything
    assert not any(code.encode() in everything or code.replace("-", "").encode() in everything for code in codes)


def test_a_reset_that_nobody_agrees_to_changes_nothing(host: Installation) -> None:
    user = make_user(host)

    ended = host.run("reset-mfa", "--username", str(user["username"]), stdin="n\n")

    assert ended.code == 1
    assert "Nothing was changed" in ended.errors
    assert host.recorded("user.mfa_reset", user["id"]) == []


def test_sessions_are_listed_and_their_secrets_are_not(host: Installation) -> None:
    user = make_user(host)
    opened = open_session(host, user)

    (told,) = sessions_of(host, user["username"])
    table = host.run("list-sessions")

    assert (told["id"], told["address"], told["agent"]) == (opened.session.id, "192.0.2.7", "tests/1")
    assert "digest" not in told
    assert opened.session.id in table.output
    assert "LAST SEEN" in table.output
    assert opened.secret not in table.output + str(told)


def test_nobody_is_signed_in_to_begin_with(host: Installation) -> None:
    user = make_user(host)

    ended = host.run("list-sessions", "--username", str(user["username"]))

    assert (ended.code, ended.output) == (0, "Nobody is signed in.\n")


def test_one_session_or_all_of_a_user_are_ended(host: Installation) -> None:
    user = make_user(host)
    name = str(user["username"])
    first, second, third = (open_session(host, user) for _ in range(3))

    one = host.told("end-session", first.session.id, "--yes")
    again = host.run("end-session", first.session.id, "--yes")
    left = {told["id"] for told in sessions_of(host, name)}
    every = host.run("end-session", "--username", name, "--all", "--yes")

    assert one == {"ended": 1}
    assert again.code == 1
    assert left == {second.session.id, third.session.id}
    assert every.output == "2 sessions have ended.\n"
    assert sessions_of(host, name) == []
    assert [clear.get("ok") for clear, _ in host.recorded("session.end", first.session.id)] == [None, True]
    assert [clear.get("ok") for clear, _ in host.recorded("session.end_all", user["id"])] == [None, True]


@pytest.mark.parametrize(
    "arguments", [(), ("--all",), ("ses_x", "--all"), ("--username", "x"), ("ses_x", "--username", "x")]
)
def test_what_is_to_end_must_be_said(host: Installation, arguments: tuple[str, ...]) -> None:
    assert host.run("end-session", *arguments, "--yes").code == 2


def test_cleaning_up_tells_how_much(host: Installation) -> None:
    told = host.told("cleanup-sessions")
    text = host.run("cleanup-sessions")

    assert set(told) == {"sessions", "setup_tokens", "login_troubles", "known_devices"}
    assert text.output.startswith("Deleted: ")


def test_locking_ends_sessions_for_good_and_tells_json(host: Installation) -> None:
    user = make_user(host)
    name = str(user["username"])
    open_session(host, user)

    locked = host.told("lock-user", "--username", name, "--yes")
    unlocked = host.told("unlock-user", "--username", name)

    assert (locked["status"], unlocked["status"]) == ("locked", "active")
    assert sessions_of(host, name) == []
