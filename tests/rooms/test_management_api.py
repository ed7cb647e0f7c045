"""The management API as its clients find it: forms, pages, versions, conflicts, records; users, keys, projects, organisations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from werkzeug.test import TestResponse

from secure_llm_proxy.foundation.errors import ErrorCode
from secure_llm_proxy.settings import Settings, ThrottlingSettings
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.web.admin.catalogue import ENDPOINTS, openapi_document
from secure_llm_proxy.web.admin.operations import OPERATIONS, PREFIX
from secure_llm_proxy.web.admin.resources.keys import KeyChange, Limits
from secure_llm_proxy.web.doors import DOORS, Guard
from tests.support.house import stop_recording_at
from tests.support.management_house import ManagementClient, ManagementRoom, make_management_room
from tests.support.postgresql import PrivatePostgreSQL

ROOMY = Settings(throttling=ThrottlingSettings(management_requests_per_minute=100_000))


@pytest.fixture
def management(tmp_path: Path) -> Iterator[ManagementRoom]:
    made = make_management_room(tmp_path, ROOMY)
    yield made
    made.room.database.close()


@pytest.fixture
def owner(management: ManagementRoom) -> ManagementClient:
    return management.as_role("owner")


@pytest.fixture
def admin(management: ManagementRoom) -> ManagementClient:
    management.as_role("owner")
    return management.as_role("admin")


def code_of(answer: TestResponse) -> str:
    return str(answer.get_json()["error"]["code"])


def acts(management: ManagementRoom) -> list[object]:
    return [event.clear["act"] for event in management.small.journal.of(AuditType.ADMIN_INTENT)]


# --- the table and its document ---------------------------------------------------------------------------------------


def test_every_operation_has_its_code_its_door_and_its_view(management: ManagementRoom) -> None:
    rules = {rule.endpoint: rule for rule in management.app.url_map.iter_rules()}
    doors = {door.endpoint: door for door in DOORS if door.endpoint.startswith("management.")}

    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    assert set(ENDPOINTS) == {operation.name for operation in OPERATIONS}
    assert set(doors) == {operation.endpoint for operation in OPERATIONS}
    assert {door.guard for door in doors.values()} == {Guard.MANAGEMENT}
    for operation in OPERATIONS:
        assert ENDPOINTS[operation.name].run is not None
        assert rules[operation.endpoint].rule == doors[operation.endpoint].path == PREFIX + operation.path
        assert doors[operation.endpoint].permission is operation.permission


def test_the_other_doors_of_this_application_are_those_of_the_table(management: ManagementRoom) -> None:
    rules = {
        (method, rule.rule, rule.endpoint)
        for rule in management.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }

    assert rules == {(door.method, door.path, door.endpoint) for door in DOORS if door.guard.is_managements}


def test_the_document_is_valid_and_tells_of_every_operation(admin: ManagementClient) -> None:
    document = admin.ask("GET", "/api/v1/openapi.json").get_json()

    OpenAPIV31SpecValidator(document).validate()
    told = {each["operationId"] for path in document["paths"].values() for each in path.values()}
    assert told == {operation.name for operation in OPERATIONS}
    assert document == json.loads(json.dumps(openapi_document()))
    assert set(document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"]) == set(
        ErrorCode
    )


def test_no_answer_is_ever_kept_by_a_cache(management: ManagementRoom, admin: ManagementClient) -> None:
    for path in ("/api/v1/me", "/api/v1/users", "/api/v1/nowhere", "/auth/me"):
        assert admin.ask("GET", path).headers["Cache-Control"] == "no-store"


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("cursor=x", "cursor"), ("cursor=%00", "cursor"),
     ("cursor=MTonIE9SIDE9MQ", "cursor"), ("rôle=x", "r\\xf4le"), ("role=god", "role"), ("limit=1&limit=2", "limit"),
     ("status=' OR 1=1--", "status"), ("name_prefix=", "name_prefix")],
)  # fmt: skip
def test_a_wrong_parameter_is_named(admin: ManagementClient, query: str, field: str) -> None:
    answer = admin.ask("GET", f"/api/v1/users?{query}")

    assert answer.status_code == 400, answer.data
    assert answer.get_json()["error"]["field"] == field


@pytest.mark.parametrize(
    ("body", "field"),
    [({"username": "new"}, "email"), ({"username": "new", "email": "n@example.org", "admin": True}, "admin"),
     ({"username": 7, "email": "n@example.org"}, "username"), ({"username": "", "email": "n@example.org"}, "username"),
     ({"username": "new", "email": "n@example.org", "role": "god"}, "role"),
     ({"username": "new", "email": "n@example.org", "mfa_required": "yes"}, "mfa_required")],
)  # fmt: skip
def test_a_wrong_member_is_named(admin: ManagementClient, body: object, field: str) -> None:
    answer = admin.ask("POST", "/api/v1/users", body)

    assert answer.status_code == 400, answer.data
    assert answer.get_json()["error"]["field"] == field


@pytest.mark.parametrize(
    ("data", "content_type", "status", "code"),
    [(b"{", "application/json", 400, "invalid_json"), (b"[]", "application/json", 400, "invalid_type"),
     (b"", "application/json", 400, "empty_body"), (b'{"a":1,"a":2}', "application/json", 400, "duplicate_key"),
     (b"{}", "text/plain", 415, "unsupported_media_type"), (b"a=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
     (b'"' + b"x" * 300_000 + b'"', "application/json", 413, "request_too_large"),
     (b'{"username":"\\ud800"}', "application/json", 400, "invalid_encoding")],
)  # fmt: skip
def test_a_body_is_read_strictly(
    admin: ManagementClient, data: bytes, content_type: str, status: int, code: str
) -> None:
    answer = admin.ask("POST", "/api/v1/users", data=data, content_type=content_type)

    assert (answer.status_code, code_of(answer)) == (status, code)


def test_a_long_list_comes_in_pages_that_lose_and_repeat_nothing(
    management: ManagementRoom, owner: ManagementClient
) -> None:
    made = [management.person(f"user{number}", "member").id for number in range(7)]

    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        told = owner.ask("GET", "/api/v1/users?limit=3" + (f"&cursor={cursor}" if cursor else "")).get_json()
        seen += [item["id"] for item in told["items"]]
        cursor = told["next_cursor"]

    assert len(seen) == len(set(seen)) == 8
    assert set(made) < set(seen)
    assert [item["id"] for item in owner.ask("GET", "/api/v1/users?name_prefix=user3").get_json()["items"]] == [made[3]]


# --- versions and conflicts -------------------------------------------------------------------------------------------


def test_a_change_of_what_somebody_else_has_changed_is_412(management: ManagementRoom, admin: ManagementClient) -> None:
    user = management.person("bob", "member")
    path = f"/api/v1/users/{user.id}"

    read = admin.ask("GET", path)
    tag = read.headers["ETag"]
    first = admin.ask("PATCH", path, {"email": "first@example.org"}, headers={"If-Match": tag})
    second = admin.ask("PATCH", path, {"email": "second@example.org"}, headers={"If-Match": tag})
    in_body = admin.ask("PATCH", path, {"email": "third@example.org", "version": read.get_json()["version"]})
    both = admin.ask("PATCH", path, {"email": "x@example.org", "version": 1}, headers={"If-Match": '"2"'})
    without = admin.ask("PATCH", path, {"email": "last@example.org"})
    gone = admin.ask("DELETE", path, headers={"If-Match": tag})

    assert tag == f'"{read.get_json()["version"]}"'
    assert first.status_code == 200
    assert first.headers["ETag"] == f'"{first.get_json()["version"]}"' != tag
    assert [(answer.status_code, code_of(answer)) for answer in (second, in_body, gone)] == [(412, "stale_version")] * 3
    assert both.status_code == 400
    assert without.status_code == 200
    assert acts(management) == ["user.update", "user.update"]


@pytest.mark.parametrize("tag", ["3", 'W/"1"', '"x"', '"1", "2"', '""', '"01"', "'"])
def test_an_if_match_that_is_no_tag_of_ours_is_400(
    management: ManagementRoom, admin: ManagementClient, tag: str
) -> None:
    user = management.person("bob", "member")

    answer = admin.ask("PATCH", f"/api/v1/users/{user.id}", {"email": "a@example.org"}, headers={"If-Match": tag})

    assert answer.status_code == 400


def test_a_name_that_is_taken_is_409(management: ManagementRoom, owner: ManagementClient) -> None:
    management.person("bob", "member")
    owner.ask("POST", "/api/v1/projects", {"name": "One"})
    owner.ask("POST", "/api/v1/organisations", {"name": "Other"})

    answers = [
        owner.ask("POST", "/api/v1/users", {"username": "BOB", "email": "b@example.org"}),
        owner.ask("POST", "/api/v1/projects", {"name": "one"}),
        owner.ask("POST", "/api/v1/organisations", {"name": "OTHER"}),
    ]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(409, "conflict")] * 3


# --- changes are recorded before they are made ------------------------------------------------------------------------


def test_a_change_is_on_record_with_its_actor_before_it_is_made(management: ManagementRoom) -> None:
    actor = management.person("root", "admin")
    client = management.client(management.session_of(actor))

    made = client.ask("POST", "/api/v1/users", {"username": "new", "email": "new@example.org"})

    user = made.get_json()["user"]
    intent, result = management.small.journal.durable
    assert (intent.type, result.type) == (AuditType.ADMIN_INTENT, AuditType.ADMIN_RESULT)
    assert intent.exchange_id == result.exchange_id
    assert (intent.clear["act"], intent.clear["by"], intent.clear["subject"]) == (
        "user.create", f"user:{actor.id}", user["id"],
    )  # fmt: skip
    assert intent.clear["req"] == made.headers["X-Request-Id"]
    assert result.clear["ok"] is True
    assert json.loads(intent.body)["username"] == "new"
    assert made.get_json()["setup_token"].encode() not in intent.body + result.body


def test_what_cannot_be_recorded_is_not_done(management: ManagementRoom, owner: ManagementClient) -> None:
    user = management.person("bob", "member")
    key = management.room.make_key("bob")
    management.small.journal.refusal = stop_recording_at(AuditType.ADMIN_INTENT)

    answers = [
        owner.ask("POST", "/api/v1/users", {"username": "new", "email": "new@example.org"}),
        owner.ask("POST", f"/api/v1/users/{user.id}/lock", {}),
        owner.ask("DELETE", f"/api/v1/users/{user.id}"),
        owner.ask("DELETE", f"/api/v1/keys/{key.api_key.id}"),
        owner.ask("POST", "/api/v1/projects", {"name": "P"}),
        owner.ask("POST", "/api/v1/organisations", {"name": "O"}),
        owner.ask("POST", "/api/v1/keys", {"user_id": user.id, "name": "k"}),
    ]

    assert [(answer.status_code, code_of(answer)) for answer in answers] == [(503, "audit_unavailable")] * 7
    assert len(owner.ask("GET", "/api/v1/users").get_json()["items"]) == 2
    assert owner.ask("GET", f"/api/v1/users/{user.id}").get_json()["status"] == "active"
    assert [item["status"] for item in owner.ask("GET", "/api/v1/keys").get_json()["items"]] == ["active"]
    assert len(owner.ask("GET", "/api/v1/projects").get_json()["items"]) == 1
    assert len(owner.ask("GET", "/api/v1/organisations").get_json()["items"]) == 1


# --- rank -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["admin", "operator"])
def test_nobody_but_an_owner_touches_an_owner_or_makes_one(management: ManagementRoom, role: str) -> None:
    boss = management.person("boss", "owner")
    key = management.room.make_key("boss")
    secret = management.session_of(boss)
    live = management.room.database.run(lambda session: management.house.sessions.find(session, secret))
    assert live is not None
    project = management.room.database.run(management.room.organisations.list_projects)[0]
    client = management.as_role(role)
    other = management.person("other", "member")
    things = {"user_id": boss.id, "key_id": key.api_key.id, "session_id": live.id, "project_id": project.id}

    for operation in OPERATIONS:
        if operation.method == "GET" or not {"user_id", "key_id", "session_id"} & set(_parts(operation.path)):
            continue
        path = PREFIX + operation.path
        for name, value in things.items():
            path = path.replace(f"<{name}>", value)
        answer = client.ask(operation.method, path, _BODIES.get(operation.name, {}))
        assert answer.status_code in {403, 404}, (operation, answer.data)
    made = client.ask("POST", "/api/v1/users", {"username": "x", "email": "x@example.org", "role": "owner"})
    risen = client.ask("PATCH", f"/api/v1/users/{other.id}", {"role": "owner"})
    keyed = client.ask("POST", "/api/v1/keys", {"user_id": boss.id, "name": "k", "kind": "adm"})

    assert [answer.status_code for answer in (made, risen, keyed)] == [403, 403, 403]
    assert acts(management) == []


_BODIES: dict[str, dict[str, object]] = {
    "update_user": {"role": "member"}, "update_key": {"name": "x"}, "quarantine_key": {"reason": "x"},
}  # fmt: skip


def _parts(path: str) -> list[str]:
    return [part.strip("<>") for part in path.split("/")]


# --- users ------------------------------------------------------------------------------------------------------------


def test_a_user_is_made_changed_locked_and_leaves_with_keys_and_sessions(
    management: ManagementRoom, admin: ManagementClient
) -> None:
    made = admin.ask("POST", "/api/v1/users", {"username": "bob", "email": "bob@example.org", "role": "operator"})
    user = made.get_json()["user"]
    path = f"/api/v1/users/{user['id']}"
    key = management.room.make_key("bob")
    person = management.room.database.run(lambda session: management.room.accounts.find_user(session, "bob"))
    theirs = management.client(management.session_of(person))

    changed = admin.ask("PATCH", path, {"email": "b@example.org"})
    locked = admin.ask("POST", f"{path}/lock", {})
    shut_out = theirs.ask("GET", "/auth/me")
    unlocked = admin.ask("POST", f"{path}/unlock", {})
    reset = admin.ask("POST", f"{path}/password-reset", {})
    left = admin.ask("DELETE", path)
    again = admin.ask("POST", f"{path}/unlock", {})

    assert made.status_code == 201
    assert changed.get_json()["email"] == "b@example.org"
    assert (locked.get_json()["status"], unlocked.get_json()["status"]) == ("locked", "active")
    assert shut_out.status_code == 401
    assert reset.get_json()["setup_token"].startswith("slp_setup_")
    assert left.get_json()["status"] == "disabled"
    assert again.status_code == 409
    assert admin.ask("GET", f"/api/v1/keys/{key.api_key.id}").get_json()["status"] == "revoked"
    assert key.api_key.kid in management.announced


def test_an_administrator_makes_users_of_the_own_organisation_only(
    management: ManagementRoom, owner: ManagementClient
) -> None:
    other = management.organisation("Other").id
    admin = management.as_role("admin", other)
    default = owner.ask("GET", "/api/v1/me").get_json()["organisation_id"]

    own = admin.ask("POST", "/api/v1/users", {"username": "bob", "email": "b@example.org"})
    foreign = admin.ask(
        "POST", "/api/v1/users", {"username": "eve", "email": "e@example.org", "organisation_id": default}
    )
    by_owner = owner.ask(
        "POST", "/api/v1/users", {"username": "eve", "email": "e@example.org", "organisation_id": other}
    )

    assert own.get_json()["user"]["organisation_id"] == other
    assert foreign.status_code == 404
    assert by_owner.get_json()["user"]["organisation_id"] == other


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_changed_rotated_and_revoked(management: ManagementRoom, admin: ManagementClient) -> None:
    user = management.person("bob", "member")

    made = admin.ask("POST", "/api/v1/keys", {"user_id": user.id, "name": "k", "models": ["small"], "tokens_max": 100})
    told = made.get_json()
    path = f"/api/v1/keys/{told['api_key']['id']}"
    changed = admin.ask("PATCH", path, {"models": None, "requests_per_minute": 7})
    rotated = admin.ask("POST", f"{path}/rotate", {"overlap_s": 60})
    quarantined = admin.ask(
        "POST", f"/api/v1/keys/{rotated.get_json()['api_key']['kid']}/quarantine", {"reason": "seen in a ticket"}
    )
    released = admin.ask("POST", f"/api/v1/keys/{rotated.get_json()['api_key']['id']}/release", {})
    revoked = admin.ask("DELETE", path)

    assert made.status_code == 201
    assert told["key"].startswith("slp_live_")
    assert told["api_key"]["models"] == ["small"]
    assert (changed.get_json()["models"], changed.get_json()["requests_per_minute"]) == (None, 7)
    assert changed.get_json()["tokens_max"] == 100
    assert rotated.status_code == 201
    assert rotated.get_json()["api_key"]["rotated_from"] == told["api_key"]["id"]
    assert quarantined.get_json()["status"] == "quarantined"
    assert released.get_json()["status"] == "active"
    assert revoked.get_json()["status"] == "revoked"
    for answer in (changed, quarantined, released, revoked, admin.ask("GET", "/api/v1/keys")):
        assert told["key"].encode() not in answer.data
        assert b"digest" not in answer.data


def test_a_member_has_keys_of_their_own_and_sees_no_others(management: ManagementRoom, admin: ManagementClient) -> None:
    management.person("bob", "member")
    others = management.room.make_key("bob")
    member = management.as_role("member")

    made = member.ask("POST", "/api/v1/me/keys", {"name": "mine"})
    listed = member.ask("GET", "/api/v1/me/keys")
    foreign = [
        member.ask("DELETE", f"/api/v1/me/keys/{others.api_key.id}"),
        member.ask("POST", f"/api/v1/me/keys/{others.api_key.id}/rotate", {}),
    ]
    revoked = member.ask("DELETE", f"/api/v1/me/keys/{made.get_json()['api_key']['id']}")

    assert made.status_code == 201
    assert [item["name"] for item in listed.get_json()["items"]] == ["mine"]
    assert [answer.status_code for answer in foreign] == [404, 404]
    assert member.ask("GET", "/api/v1/keys").status_code == 403
    assert revoked.get_json()["status"] == "revoked"
    assert admin.ask("GET", f"/api/v1/keys/{others.api_key.id}").get_json()["status"] == "active"


@pytest.mark.parametrize("role", ["admin", "operator"])
def test_a_key_gives_nobody_what_the_own_role_does_not(management: ManagementRoom, role: str) -> None:
    auditor = management.person("auditor", "auditor")
    theirs = management.room.make_key("auditor", kind="adm")
    client = management.as_role(role)

    made = client.ask("POST", "/api/v1/keys", {"user_id": auditor.id, "name": "k", "kind": "adm"})
    rotated = client.ask("POST", f"/api/v1/keys/{theirs.api_key.id}/rotate", {"overlap_s": 0})
    revoked = client.ask("DELETE", f"/api/v1/keys/{theirs.api_key.id}")

    assert (made.status_code, rotated.status_code) == (403, 403)
    assert revoked.status_code == 200
    assert acts(management) == ["key.revoke"]


def test_a_member_sets_no_rate_of_the_own_key(management: ManagementRoom, admin: ManagementClient) -> None:
    member = management.as_role("member")

    for rate in ("requests_per_minute", "burst", "concurrent"):
        refused = member.ask("POST", "/api/v1/me/keys", {"name": "fast", rate: 1_000_000})
        assert (refused.status_code, code_of(refused)) == (403, "forbidden")
    assert admin.ask("POST", "/api/v1/me/keys", {"name": "fast", "requests_per_minute": 1000}).status_code == 201
    assert member.ask("GET", "/api/v1/me/keys").get_json()["items"] == []


@pytest.mark.parametrize("role", ["admin"])
def test_an_administrator_makes_nobody_who_reads_what_he_may_not(management: ManagementRoom, role: str) -> None:
    auditor = management.person("auditor", "auditor")
    puppet = management.person("puppet", "member")
    owner, client = management.as_role("owner"), management.as_role(role)

    made = client.ask("POST", "/api/v1/users", {"username": "x", "email": "x@example.org", "role": "auditor"})
    turned = client.ask("PATCH", f"/api/v1/users/{puppet.id}", {"role": "auditor"})
    reset = client.ask("POST", f"/api/v1/users/{auditor.id}/password-reset", {})

    assert [answer.status_code for answer in (made, turned, reset)] == [403, 403, 403]
    assert acts(management) == []
    assert owner.ask("PATCH", f"/api/v1/users/{puppet.id}", {"role": "auditor"}).status_code == 200


def test_a_one_time_token_for_the_old_role_opens_nothing_in_the_new_one(management: ManagementRoom) -> None:
    owner, admin = management.as_role("owner"), management.as_role("admin")
    made = admin.ask("POST", "/api/v1/users", {"username": "rising", "email": "r@example.org"}).get_json()

    promoted = owner.ask("PATCH", f"/api/v1/users/{made['user']['id']}", {"role": "owner"})
    redeemed = management.client().ask(
        "POST", "/auth/setup", {"token": made["setup_token"], "password": "correct horse battery staple 7"}
    )

    assert promoted.status_code == 200
    assert (redeemed.status_code, code_of(redeemed)) == (400, "setup_token_invalid")


def test_too_many_keys_are_409(admin: ManagementClient) -> None:
    statuses = [admin.ask("POST", "/api/v1/me/keys", {"name": f"k{number}"}).status_code for number in range(6)]

    assert statuses == [201] * 5 + [409]


def test_every_limit_of_a_key_can_be_changed() -> None:
    assert set(Limits.model_fields) | {"name", "scopes", "version"} == set(KeyChange.model_fields)


# --- projects, organisations, sessions --------------------------------------------------------------------------------


def test_a_project_gets_members_and_loses_them(management: ManagementRoom, admin: ManagementClient) -> None:
    user = management.person("bob", "member")

    project = admin.ask("POST", "/api/v1/projects", {"name": "P", "requests_per_minute": 60}).get_json()
    path = f"/api/v1/projects/{project['id']}"
    added = admin.ask("POST", f"{path}/members", {"user_id": user.id})
    key = admin.ask("POST", "/api/v1/keys", {"user_id": user.id, "name": "k", "project_id": project["id"]}).get_json()
    members = admin.ask("GET", f"{path}/members").get_json()["items"]
    removed = admin.ask("DELETE", f"{path}/members/{user.id}")
    unlimited = admin.ask("PATCH", path, {"requests_per_minute": None, "name": "Q"})
    inactive = admin.ask("PATCH", path, {"status": "inactive"}, headers={"If-Match": unlimited.headers["ETag"]})

    assert added.status_code == 201
    assert [member["username"] for member in members] == ["bob"]
    assert removed.status_code == 200
    assert admin.ask("GET", f"/api/v1/keys/{key['api_key']['id']}").get_json()["status"] == "revoked"
    assert (unlimited.get_json()["requests_per_minute"], unlimited.get_json()["name"]) == (None, "Q")
    assert inactive.get_json()["status"] == "inactive"


def test_organisations_are_an_owners_and_everybody_else_sees_the_own_one(
    management: ManagementRoom, owner: ManagementClient
) -> None:
    made = owner.ask("POST", "/api/v1/organisations", {"name": "Other"})
    path = f"/api/v1/organisations/{made.get_json()['id']}"
    theirs = management.as_role("admin", made.get_json()["id"])
    renamed = owner.ask("PATCH", path, {"name": "Another"}, headers={"If-Match": made.headers["ETag"]})

    assert made.status_code == 201
    assert renamed.get_json()["name"] == "Another"
    assert len(owner.ask("GET", "/api/v1/organisations").get_json()["items"]) == 2
    assert [item["name"] for item in theirs.ask("GET", "/api/v1/organisations").get_json()["items"]] == ["Another"]
    assert theirs.ask("POST", "/api/v1/organisations", {"name": "Third"}).status_code == 403


def test_an_administrator_ends_sessions(management: ManagementRoom, admin: ManagementClient) -> None:
    user = management.person("bob", "member")
    theirs = management.client(management.session_of(user))
    listed = admin.ask("GET", f"/api/v1/sessions?user_id={user.id}").get_json()["items"]

    ended = admin.ask("DELETE", f"/api/v1/sessions/{listed[0]['id']}")

    assert [item["username"] for item in listed] == ["bob"]
    assert ended.status_code == 200
    assert theirs.ask("GET", "/auth/me").status_code == 401
    assert admin.ask("DELETE", f"/api/v1/sessions/{listed[0]['id']}").status_code == 404


# --- address rules, kill switches -------------------------------------------------------------------------------------


def test_an_address_rule_is_added_seen_and_removed(management: ManagementRoom, admin: ManagementClient) -> None:
    wanted = {"list": "blocked", "network": "203.0.113.7", "note": "scanner", "expires_hours": 2}

    made = admin.ask("POST", "/api/v1/address-rules", wanted)
    path = f"/api/v1/address-rules/{made.get_json()['id']}"
    again = admin.ask("POST", "/api/v1/address-rules", wanted)
    listed = admin.ask("GET", "/api/v1/address-rules?list=blocked").get_json()["items"]
    removed = admin.ask("DELETE", path, headers={"If-Match": made.headers["ETag"]})

    assert made.status_code == 201
    assert made.get_json()["network"] == "203.0.113.7/32"
    assert made.get_json()["created_by"].startswith("user:usr_")
    assert (again.status_code, code_of(again)) == (409, "conflict")
    assert [item["note"] for item in listed] == ["scanner"]
    assert removed.status_code == 200
    assert admin.ask("GET", path).status_code == 404
    assert management.announced.count("address rules") == 2
    assert acts(management) == ["address_rule.add", "address_rule.add", "address_rule.remove"]


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"list": "blocked", "network": "127.0.0.0/8"}, 409),
        ({"list": "allowed", "network": "10.0.0.0/8"}, 409),
        ({"list": "blocked", "network": "0.0.0.0/0"}, 400),
        ({"list": "blocked", "network": "nonsense"}, 400),
        ({"list": "blocked", "network": "10.0.0.0/8", "expires_hours": 0}, 400),
        ({"list": "blocked", "network": "10.0.0.0/8", "expires_hours": 1e9}, 400),
        ({"list": "other", "network": "10.0.0.0/8"}, 400),
    ],
)
def test_a_rule_that_shuts_out_its_maker_or_everybody_takes_force(
    management: ManagementRoom, admin: ManagementClient, wanted: dict[str, object], status: int
) -> None:
    refused = admin.ask("POST", "/api/v1/address-rules", wanted)
    forced = admin.ask("POST", "/api/v1/address-rules", {**wanted, "force": True})

    assert refused.status_code == status
    assert (forced.status_code == 201) is (wanted["list"] != "other" and wanted["network"] in {
        "127.0.0.0/8", "0.0.0.0/0", "10.0.0.0/8"} and "expires_hours" not in wanted)  # fmt: skip
    assert len(acts(management)) == (1 if forced.status_code == 201 else 0)


def test_a_person_is_stopped_without_a_step_up_and_let_go_with_one(management: ManagementRoom) -> None:
    operator = management.as_role("operator", fresh=False)
    user = management.person("bob", "member")
    boss = management.person("boss", "owner")

    killed = operator.ask("POST", "/api/v1/kill-switches", {"subject": user.id, "reason": "stolen laptop"})
    again = operator.ask("POST", "/api/v1/kill-switches", {"subject": user.id, "reason": "other"})
    owners = operator.ask("POST", "/api/v1/kill-switches", {"subject": boss.id, "reason": "x"})
    by_name = operator.ask("POST", "/api/v1/kill-switches", {"subject": "bob", "reason": "x"})
    everything = operator.ask("POST", "/api/v1/kill-switches", {"subject": "everything", "reason": "drill"})
    listed = operator.ask("GET", "/api/v1/kill-switches").get_json()["items"]
    hasty = operator.ask("DELETE", f"/api/v1/kill-switches/{user.id}")
    with_app = management.as_role("operator")
    let_go = with_app.ask("DELETE", f"/api/v1/kill-switches/{user.id}")

    assert (hasty.status_code, code_of(hasty)) == (403, "step_up_required")
    assert killed.status_code == 201
    assert again.get_json()["reason"] == "stolen laptop"
    assert owners.status_code == 403
    assert by_name.status_code == 404
    assert everything.status_code == 201
    assert {item["id"] for item in listed} == {user.id, "everything"}
    assert let_go.status_code == 200
    assert with_app.ask("DELETE", f"/api/v1/kill-switches/{user.id}").status_code == 404
    assert management.announced == [user.id, user.id, "everything", user.id]


def test_who_is_stopped_does_not_manage_and_does_not_let_go_of_themselves(management: ManagementRoom) -> None:
    boss = management.as_role("owner")
    user = management.person("bob", "admin")
    theirs = management.client(management.session_of(user))
    boss.ask("POST", "/api/v1/kill-switches", {"subject": user.id, "reason": "stolen laptop"})

    refused = [
        theirs.ask("GET", "/api/v1/me"),
        theirs.ask("GET", "/auth/me"),
        theirs.ask("DELETE", f"/api/v1/kill-switches/{user.id}"),
    ]
    boss.ask("DELETE", f"/api/v1/kill-switches/{user.id}")
    boss.ask("POST", "/api/v1/kill-switches", {"subject": "everything", "reason": "drill"})

    assert [(answer.status_code, code_of(answer)) for answer in refused] == [(403, "killed")] * 3
    assert theirs.ask("GET", "/api/v1/me").status_code == 200
    assert boss.ask("DELETE", "/api/v1/kill-switches/everything").status_code == 200


def test_an_organisation_is_stopped_by_its_administrators_and_never_locks_an_owner_out(
    management: ManagementRoom,
) -> None:
    owner, admin, operator = (management.as_role(role) for role in ("owner", "admin", "operator"))
    organisation = owner.ask("GET", "/api/v1/me").get_json()["organisation_id"]
    wanted = {"subject": organisation, "reason": "drill"}

    by_operator = operator.ask("POST", "/api/v1/kill-switches", wanted)
    by_admin = admin.ask("POST", "/api/v1/kill-switches", wanted)
    stopped = [client.ask("GET", "/api/v1/me").status_code for client in (admin, operator)]
    let_go = owner.ask("DELETE", f"/api/v1/kill-switches/{organisation}")

    assert (by_operator.status_code, by_admin.status_code) == (403, 201)
    assert stopped == [403, 403]
    assert let_go.status_code == 200
    assert admin.ask("GET", "/api/v1/me").status_code == 200


def test_only_the_organisation_that_runs_the_deployment_stops_everything(management: ManagementRoom) -> None:
    foreign = management.as_role("admin", management.organisation("Other").id)
    boss = management.as_role("owner")

    killed = foreign.ask("POST", "/api/v1/kill-switches", {"subject": "everything", "reason": "x"})
    boss.ask("POST", "/api/v1/kill-switches", {"subject": "everything", "reason": "drill"})
    seen = foreign.ask("GET", "/api/v1/kill-switches").get_json()["items"]
    let_go = foreign.ask("DELETE", "/api/v1/kill-switches/everything")

    assert killed.status_code == 403
    assert [item["id"] for item in seen] == ["everything"]
    assert let_go.status_code == 403


# --- limits, outages, injection ---------------------------------------------------------------------------------------


def test_a_person_has_a_rate_and_the_other_persons_have_theirs(tmp_path: Path) -> None:
    settings = Settings(throttling=ThrottlingSettings(management_requests_per_minute=3))
    management = make_management_room(tmp_path, settings)
    one, other = management.as_role("admin"), management.as_role("admin")

    answers = [one.ask("GET", "/api/v1/me") for _ in range(8)]
    others = other.ask("GET", "/api/v1/me")
    management.room.database.close()

    assert [answer.status_code for answer in answers[:3]] == [200] * 3
    # The window slides while the test runs, so one or two more may pass.
    over = next(answer for answer in answers[3:] if answer.status_code != 200)
    assert over.status_code == 429
    assert int(over.headers["Retry-After"]) >= 1
    assert others.status_code == 200


INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE users; --",
    '" OR ""="',
    "1) UNION SELECT NULL--",
    "%' --",
    "\\",
    "x\x00y",
    "\U0001d56c' --",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_in_any_place_of_a_request_is_text(management: ManagementRoom, text: str) -> None:
    _send_everywhere(management, text)


def test_it_is_text_to_postgresql_too(tmp_path: Path, postgresql: PrivatePostgreSQL) -> None:
    management = make_management_room(tmp_path, ROOMY, postgresql.create_database())

    _send_everywhere(management, "'; DROP TABLE users; -- \\ \x00 %_")
    management.room.database.close()


def _send_everywhere(management: ManagementRoom, text: str) -> None:
    owner = management.as_role("owner")
    management.person("bob", "member")
    management.room.make_key("bob")

    answers = []
    for operation in OPERATIONS:
        path = PREFIX + operation.path
        for part in _parts(operation.path):
            path = path.replace(f"<{part}>", text.replace("/", ""))
        takes = ENDPOINTS[operation.name].takes
        wanted = dict.fromkeys(takes.model_fields, text)
        if operation.method in {"GET", "DELETE"}:
            answers += [owner.ask(operation.method, path, query_string={name: text}) for name in takes.model_fields]
        answers += [
            owner.ask(operation.method, path, wanted if operation.method not in {"GET", "DELETE"} else None),
            owner.ask(operation.method, path, {}, headers={"If-Match": f'"{text}"'} if "\x00" not in text else {}),
        ]
        answers += [owner.ask(operation.method, path, {name: text}) for name in takes.model_fields]
    for name in (
        "Authorization",
        "X-Session-Token",
        "X-API-Key",
        "Cookie",
        "X-CSRF-Token",
        "Origin",
        "X-Forwarded-For",
    ):
        if "\x00" not in text and text.isascii():
            answers.append(management.client().ask("GET", "/api/v1/me", headers={name: text}))

    failed = [answer for answer in answers if answer.status_code >= 500]
    # No audit writer runs here, and what asks its readers says so.
    assert {(answer.request.path.split("/")[3], answer.get_json()["error"]["code"]) for answer in failed} <= {
        ("audit", "audit_unavailable")
    }
    # A name may hold anything printable: what was made is a project or an organisation of that name, and nothing else.
    assert set(acts(management)) <= {"project.create", "organisation.create", "key.create"}
    assert [item["username"] for item in owner.ask("GET", "/api/v1/users?name_prefix=bob").get_json()["items"]] == [
        "bob"
    ]
    assert {item["status"] for item in owner.ask("GET", "/api/v1/keys?status=active").get_json()["items"]} == {"active"}
