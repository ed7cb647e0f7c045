"""Commands about projects, organisations, users who change or leave, keys that rotate and leak, as an operator types them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, draw_api_key
from tests.support.installation import Installation, fresh, installation_in


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "projects") as installation:
        yield installation


def user_named(host: Installation, name: str) -> dict[str, object]:
    return next(user for user in host.listed("list-users") if user["username"] == name)


def key_status(host: Installation, key: dict[str, object]) -> object:
    return next(found["status"] for found in host.listed("list-api-keys") if found["id"] == key["id"])


def assert_recorded(host: Installation, action: str, subject: object) -> dict[str, object]:
    """Intent and result stand in the log; returns the intent's sealed part."""
    (intent, body), (result, _) = host.recorded(action, subject)
    assert (intent["ty"], result["ty"], result["ok"]) == ("admin.intent", "admin.result", True)
    return body


def test_the_first_administrator_of_a_deployment_is_its_owner_and_stays_it(short_folder: Path) -> None:
    with installation_in(short_folder / "first") as new:
        first = new.told("create-admin", "--username", "root", "--email", "root@example.org")
        second = new.told("create-admin", "--username", "more", "--email", "more@example.org")
        refused = [
            new.run("lock-user", "--username", "root", "--yes"),
            new.run("disable-user", "--username", "root", "--yes"),
            new.run("update-user", "--username", "root", "--role", "admin"),
        ]
        promoted = new.told("update-user", "--username", "more", "--role", "owner")
        demoted = new.told("update-user", "--username", "root", "--role", "readonly")

    assert (first["role"], second["role"]) == ("owner", "admin")
    assert [(ended.code, "last active owner" in ended.errors) for ended in refused] == [(1, True)] * 3
    assert (promoted["role"], demoted["role"]) == ("owner", "viewer")


def test_an_organisation_its_projects_and_members_from_the_shell(host: Installation) -> None:
    bank, name = fresh("Bank"), fresh("ann")
    made = host.told("organisations", "create", bank)
    user = host.make_user(name, "--organisation", bank)
    project = host.told("projects", "create", "Desk", "--organisation", bank, "--rpm", "20")
    joined = host.run("projects", "add-member", "desk", "--organisation", bank, "--user", name)
    members = host.listed("projects", "members", str(project["id"]))
    key = host.make_key(name, "--project", "Desk")

    assert user["organisation_id"] == project["organisation_id"] == made["id"]
    assert (project["requests_per_minute"], key["project_id"]) == (20, project["id"])
    assert joined.code == 0
    assert [(member["username"], member["user_id"]) for member in members] == [(name, user["id"])]
    listed = host.listed("projects", "list", "--organisation", bank)
    assert {found["name"] for found in listed} == {"Default", "Desk"}
    assert [found["id"] for found in host.listed("organisations", "list", "--prefix", bank.upper())] == [made["id"]]
    assert [found["username"] for found in host.listed("list-users", "--organisation", bank)] == [name]
    table = host.run("projects", "list", "--prefix", "desk", "--organisation", bank).output.splitlines()
    assert table[0].split() == ["NAME", "ORGANISATION", "STATUS", "RPM", "CREATED", "ID"]
    assert table[1].split()[:4] == ["Desk", bank, "active", "20"]
    assert assert_recorded(host, "organisation.create", made["id"]) == {"name": bank}
    assert assert_recorded(host, "project.create", project["id"])["organisation"] == bank
    assert assert_recorded(host, "project.add_member", project["id"]) == {"project": "Desk", "username": name}

    left = host.run("projects", "remove-member", str(project["id"]), "--user", name, "--yes")

    assert left.output.endswith("keys revoked: 1.\n")
    assert key_status(host, key) == "revoked"
    assert host.listed("projects", "members", str(project["id"])) == []


def test_a_project_is_renamed_limited_stopped_and_started(host: Installation) -> None:
    name, other = fresh("proj"), fresh("other")
    project = str(host.told("projects", "create", name)["id"])

    renamed = host.told("projects", "rename", name, other)
    limited = host.told("projects", "set-rate", other, "7")
    unlimited = host.told("projects", "set-rate", other, "0")
    asked = host.run("projects", "deactivate", other, stdin="n\n")
    stopped = host.run("projects", "deactivate", other, "--yes")
    inactive = host.listed("projects", "list", "--status", "inactive")
    started = host.run("projects", "activate", other)

    assert (renamed["name"], limited["requests_per_minute"], unlimited["requests_per_minute"]) == (other, 7, None)
    assert (asked.code, stopped.code, started.code) == (1, 0, 0)
    assert [found["id"] for found in inactive] == [project]
    assert assert_recorded(host, "project.deactivate", project) == {"was": other, "status": "inactive"}
    assert assert_recorded(host, "project.activate", project) == {"was": other, "status": "active"}
    organisation = str(host.told("organisations", "create", fresh("org"))["id"])
    assert host.told("organisations", "rename", organisation, fresh("new"))["version"] == 2


def test_what_is_missing_or_taken_is_one_sentence_and_exit_1(host: Installation) -> None:
    host.told("projects", "create", "Taken")

    for arguments, sentence in (
        (("projects", "create", "TAKEN"), "exists already"),
        (("projects", "members", "nobody's"), "no project"),
        (("projects", "list", "--organisation", "nobody's"), "no organisation"),
        (("organisations", "create", "DEFAULT"), "exists already"),
        (("update-user", "--username", "nobody", "--role", "admin"), "no user"),
        (("rotate-api-key", "AAAAAAAA"), "no API key"),
        (("create-user", "--username", "x", "--email", "x@y", "--organisation", "none"), "no organisation"),
    ):
        ended = host.run(*arguments)
        assert (ended.code, sentence in ended.errors, ended.errors.count("\n")) == (1, True, 1), ended


@pytest.mark.parametrize(
    "arguments",
    [
        ("projects",),
        ("projects", "rename", "x"),
        ("update-user", "--username", "x"),
        ("rotate-api-key",),
        ("rotate-api-key", "AAAAAAAA", "--overlap", "169"),
        ("rotate-api-key", "AAAAAAAA", "--key-id", "AAAAAAAA"),
        ("quarantine-api-key", "AAAAAAAA"),
        ("create-api-key", "--user", "x", "--name", "x", "--kind", "root"),
        ("check-leaks",),
    ],
)
def test_a_command_typed_wrongly_is_exit_2(host: Installation, arguments: tuple[str, ...]) -> None:
    assert host.run(*arguments).code == 2


def test_a_user_who_leaves_is_disabled_for_good(host: Installation) -> None:
    name = fresh("leaver")
    user = host.make_user(name)
    keys = [host.make_key(name), host.make_key(name)]

    kept = host.run("disable-user", "--username", name, stdin="n\n")
    left = host.told("disable-user", "--username", name, "--yes")
    again = host.run("unlock-user", "--username", name)

    assert kept.code == 1
    assert (left["status"], set(left["revoked_keys"])) == ("disabled", {key["kid"] for key in keys})  # type: ignore[call-overload]
    assert {key_status(host, key) for key in keys} == {"revoked"}
    assert (again.code, "disabled for good" in again.errors) == (1, True)
    assert [found["username"] for found in host.listed("list-users", "--status", "disabled", "--prefix", name)] == [
        name
    ]
    assert assert_recorded(host, "user.disable", user["id"]) == {"username": name}


def test_a_user_gets_another_address_and_role(host: Installation) -> None:
    name = fresh("mover")
    user = host.make_user(name, "--role", "operator")
    managing = host.make_key(name, "--kind", "adm")

    changed = host.told("update-user", "--username", name, "--email", "new@example.org", "--role", "user")

    assert (changed["email"], changed["role"], changed["version"]) == ("new@example.org", "member", 2)
    assert changed["revoked_keys"] == [managing["kid"]]
    assert assert_recorded(host, "user.update", user["id"])["email"] == "new@example.org"
    assert user_named(host, name)["role"] == "member"


def test_a_key_is_made_with_every_bound_and_changed(host: Installation) -> None:
    name = fresh("bound")
    host.make_user(name)

    key = host.make_key(
        name,
        *("--kind", "test", "--expires", "10", "--permissions", "chat_access", "--models", "a,b", "--max-tokens", "99"),
        *("--allow-ip", "10.0.0.0/8,192.0.2.1", "--allow-agent", "OpenAI", "--rpm", "9", "--burst", "3"),
        *("--concurrent", "2"),
    )
    changed = host.told(
        "update-api-key",
        str(key["kid"]),
        "--rpm",
        "4",
        "--no-limit",
        "models",
        "--no-limit",
        "allow-ip",
        "--name",
        "new",
    )
    contradiction = host.run("update-api-key", str(key["kid"]), "--rpm", "4", "--no-limit", "rpm")
    nothing = host.run("update-api-key", str(key["kid"]))

    assert str(key["key"]).startswith("slp_test_")
    assert (key["scopes"], key["models"], key["tokens_max"]) == (["chat"], ["a", "b"], 99)
    assert (key["allowed_addresses"], key["allowed_agents"]) == (["10.0.0.0/8", "192.0.2.1/32"], ["openai"])
    assert (key["requests_per_minute"], key["burst"], key["concurrent"]) == (9, 3, 2)
    assert (changed["models"], changed["allowed_addresses"], changed["requests_per_minute"]) == (None, None, 4)
    assert (changed["name"], changed["burst"], changed["version"]) == ("new", 3, 2)
    assert (contradiction.code, nothing.code) == (2, 2)
    assert assert_recorded(host, "key.update", key["kid"])["requests_per_minute"] == 4
    assert [found["id"] for found in host.listed("list-api-keys", "--user", name, "--kind", "test")] == [key["id"]]


@pytest.mark.parametrize("flag", [(), ("--key-id",)])
def test_a_key_is_rotated_and_its_successor_shown_once(host: Installation, flag: tuple[str, ...]) -> None:
    name = fresh("rotor")
    host.make_user(name)
    old = host.make_key(name)

    new = host.told("rotate-api-key", *flag, str(old["kid"]), "--overlap", "48")
    again = host.run("rotate-api-key", str(old["kid"]))
    asked = host.run("rotate-api-key", str(new["kid"]), "--overlap", "0", stdin="n\n")
    table = host.run("rotate-api-key", str(new["kid"]), "--overlap", "0", "--yes")

    assert new["rotated_from"] == old["id"]
    assert str(new["key"]) not in host.everything_written().decode("utf-8", "replace")
    assert (again.code, "rotated already" in again.errors) == (1, True)
    assert asked.code == 1
    assert table.output.splitlines()[-1] == f"{new['kid']} is revoked."
    assert [key_status(host, key) for key in (old, new)] == ["revoked", "revoked"]
    (intent, _), _ = host.recorded("key.rotate", old["kid"])[:2]
    assert (intent["new"], intent["overlap_s"]) == (new["kid"], 172_800)


def test_a_key_is_quarantined_and_released(host: Installation) -> None:
    name = fresh("quara")
    host.make_user(name)
    key = host.make_key(name)

    quarantined = host.run("quarantine-api-key", str(key["kid"]), "--reason", "seen in a ticket")
    status = key_status(host, key)
    listed = host.listed("list-api-keys", "--user", name, "--status", "quarantined")
    kept = host.run("release-api-key", str(key["kid"]), stdin="\n")
    released = host.run("release-api-key", "--key-id", str(key["id"]), "--yes")

    assert (quarantined.code, kept.code, released.code) == (0, 1, 0)
    assert (status, key_status(host, key)) == ("quarantined", "active")
    assert [found["quarantine_reason"] for found in listed] == ["seen in a ticket"]
    assert assert_recorded(host, "key.quarantine", key["kid"])["reason"] == "seen in a ticket"
    assert assert_recorded(host, "key.release", key["kid"])["username"] == name


def test_files_are_searched_for_keys_and_only_the_working_ones_of_ours_alarm(
    host: Installation, tmp_path: Path
) -> None:
    name = fresh("leaky")
    host.make_user(name)
    works, dead = host.make_key(name), host.make_key(name)
    host.run("revoke-api-key", str(dead["kid"]), "--yes")
    strange = draw_api_key()
    harmless, log = tmp_path / "harmless.txt", tmp_path / "app.log"
    harmless.write_text(f"one\n{strange.secret} and {dead['key']}\n", "utf-8")
    log.write_text(f"one\ntwo\nGET /?key={works['key']}&x=1\n", "utf-8")

    clean = host.run("check-leaks", str(harmless))
    found = host.run("check-leaks", str(harmless), str(log), "--json")
    piped = host.run("check-leaks", "-", stdin=f"{works['key']}\n")
    nothing = host.run("check-leaks", "-", stdin="nothing\n")

    assert (clean.code, found.code, piped.code, nothing.code) == (0, 1, 1, 0)
    assert [line.split()[1:4] for line in clean.output.splitlines()[1:]] == [
        ["2", strange.kid, "not"],
        ["2", str(dead["kid"]), "revoked"],
    ]
    assert f'"line": 3,\n    "key": "{works["kid"]}",\n    "status": "active"' in found.output
    assert "quarantine-api-key" in piped.errors
    assert nothing.output == "No API key was found.\n"
    for ended in (clean, found, piped):
        assert str(works["key"])[18:] not in ended.output + ended.errors


def test_users_without_a_word_about_it_belong_to_the_first_organisation(host: Installation) -> None:
    assert host.make_user(fresh("plain"))["organisation_id"] == DEFAULT_ORGANISATION_ID
