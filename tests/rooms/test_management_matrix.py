"""Who may do what at the management API: every role at every operation of the table, so also at those that come later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, Permission, Role, may
from secure_llm_proxy.settings import Settings, ThrottlingSettings
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.web.admin.operations import OPERATIONS, PREFIX, Operation
from tests.support.management_house import ManagementClient, ManagementRoom, make_management_room

ROOMY = Settings(
    throttling=ThrottlingSettings(login_requests_per_minute=100_000, management_requests_per_minute=100_000)
)
FOREIGN = "elsewhere"


@dataclass
class House:
    """Two organisations with a person of every role in each, and things of both."""

    management: ManagementRoom
    own: dict[Role, ManagementClient]
    foreign: dict[Role, ManagementClient]
    foreign_things: dict[str, str]

    def state(self) -> list[object]:
        """All that changes could have changed."""
        room = self.management.room
        return room.database.run(
            lambda session: [
                room.accounts.list_users(session),
                room.keys.list_api_keys(session),
                room.organisations.list_organisations(session),
                room.organisations.list_projects(session),
                [live.id for live in self.management.house.sessions.listing(session)],
                self.management.house.kill_switches.listing(session),
                self.management.house.address_rules.list_rules(session),
            ]
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    management = make_management_room(tmp_path_factory.mktemp("matrix"), ROOMY)
    elsewhere = management.organisation(FOREIGN).id
    own = {role: management.as_role(role) for role in Role}
    foreign = {role: management.as_role(role, elsewhere) for role in Role}
    room = management.room
    somebody = management.person("somebody.elsewhere", "member", elsewhere)
    project = room.database.run(
        lambda session: room.organisations.create_project(session, organisation=elsewhere, name="Theirs")
    )
    room.database.run(lambda session: room.organisations.add_member(session, project.id, somebody.id))
    key = room.make_key("somebody.elsewhere", project=project.id)
    secret = management.session_of(somebody)
    live = room.database.run(lambda session: management.house.sessions.find(session, secret))
    assert live is not None
    things = {
        "organisation_id": elsewhere,
        "user_id": somebody.id,
        "project_id": project.id,
        "key_id": key.api_key.id,
        "session_id": live.id,
        "subject": somebody.id,
    }
    room.database.run(lambda session: management.house.kill_switches.kill(session, somebody.id, "drill", "test"))
    yield House(management, own, foreign, things)
    room.database.close()


def path_of(operation: Operation, things: dict[str, str]) -> str:
    """A thing that the test does not know of yet is one that does not exist."""
    return PREFIX + re.sub(
        r"<(\w+)>", lambda found: things.get(found[1], "xxx_00000000000000000000000000"), operation.path
    )


def ids(operation: object) -> str:
    return operation.name if isinstance(operation, Operation) else str(operation)


FORBIDDEN = [
    (role, operation)
    for operation in OPERATIONS
    for role in Role
    if operation.permission is not None and not may(role, DEFAULT_ORGANISATION_ID, operation.permission)
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
def test_nobody_gets_in_without_a_session(house: House, operation: Operation) -> None:
    answer = house.management.client().ask(operation.method, path_of(operation, house.foreign_things), {})

    assert answer.status_code == 401
    assert answer.get_json()["error"]["code"] == "missing_session"


@pytest.mark.parametrize(("role", "operation"), FORBIDDEN, ids=ids)
def test_a_role_without_the_permission_is_refused_whatever_it_asks(
    house: House, role: Role, operation: Operation
) -> None:
    before = house.state()

    for things in (house.foreign_things, {}):
        answer = house.own[role].ask(operation.method, path_of(operation, things), {})
        assert answer.status_code in {403, 404}, answer.data

    assert house.state() == before


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OWNER])
def test_a_thing_of_another_organisation_is_not_there(house: House, role: Role, operation: Operation) -> None:
    if "<" not in operation.path:
        return
    before = house.state()

    answer = house.own[role].ask(
        operation.method, path_of(operation, house.foreign_things), VALID.get(operation.name, {})
    )

    assert answer.status_code in {403, 404}, answer.data
    assert house.state() == before


@pytest.mark.parametrize(
    "permission", [Permission.ADDRESS_RULES_MANAGE, Permission.ADDRESS_RULES_READ, Permission.ORGANISATIONS_MANAGE]
)
@pytest.mark.parametrize("role", [role for role in Role if role is not Role.OWNER])
def test_what_touches_the_whole_deployment_is_not_for_another_organisations_people(
    house: House, role: Role, permission: Permission
) -> None:
    before = house.state()

    for operation in OPERATIONS:
        if operation.permission is permission:
            answer = house.foreign[role].ask(operation.method, path_of(operation, {}), VALID.get(operation.name, {}))
            assert answer.status_code == 403, answer.data

    assert house.state() == before


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation.step_up], ids=ids)
def test_what_is_dangerous_takes_a_second_factor_shown_just_now(house: House, operation: Operation) -> None:
    stale = house.management.as_role(Role.OWNER, fresh=False)
    before = house.state()

    answer = stale.ask(operation.method, path_of(operation, house.foreign_things), VALID.get(operation.name, {}))

    assert answer.status_code == 403
    assert answer.get_json()["error"]["code"] == "step_up_required"
    assert house.state() == before


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.method == "GET"], ids=ids)
@pytest.mark.parametrize("role", list(Role))
def test_whoever_may_read_reads_and_nothing_is_recorded(house: House, role: Role, operation: Operation) -> None:
    if operation.permission is not None and not may(role, DEFAULT_ORGANISATION_ID, operation.permission):
        return
    recorded = len(house.management.small.journal.of(AuditType.ADMIN_INTENT))

    answer = house.own[role].ask("GET", path_of(operation, {}))

    assert answer.status_code in {200, 404}, answer.data
    assert len(house.management.small.journal.of(AuditType.ADMIN_INTENT)) == recorded


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.method != "GET"], ids=ids)
def test_every_change_takes_a_permission_and_those_who_only_look_have_none_of_them(operation: Operation) -> None:
    assert operation.permission is not None
    assert not operation.permission.endswith(":read")
    if operation.permission is Permission.AUDIT_REVEAL:
        # It changes nothing but what somebody knows: that is what auditors are for.
        return
    for role in (Role.AUDITOR, Role.VIEWER):
        assert not may(role, DEFAULT_ORGANISATION_ID, operation.permission)


VALID: dict[str, dict[str, object]] = {
    "update_user": {"email": "other@example.org"},
    "create_user": {"username": "new.user", "email": "new@example.org"},
    "create_key": {"user_id": "usr_x", "name": "k"},
    "create_own_key": {"name": "k"},
    "update_key": {"name": "k"},
    "quarantine_key": {"reason": "seen in a log"},
    "create_project": {"name": "P"},
    "update_project": {"name": "P"},
    "add_member": {"user_id": "usr_x"},
    "create_organisation": {"name": "O"},
    "rename_organisation": {"name": "O"},
    "add_address_rule": {"list": "blocked", "network": "203.0.113.0/24"},
    "reveal_audit_record": {"reader": "ada", "code": "123456", "reason": "drill"},
    "kill": {"subject": "everything", "reason": "drill"},
}
"""Bodies that get past the form, so that what refuses is the guard or the reach."""
