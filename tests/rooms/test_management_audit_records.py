"""Records of the audit log at the management API: who sees which, pages, and what is told when the index lies."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from secure_llm_proxy.audit.index_shipping import IndexShipper
from secure_llm_proxy.audit.models import AuditIndexRow
from secure_llm_proxy.audit.segment_reader import SegmentReader
from secure_llm_proxy.audit.segments import segments_in
from secure_llm_proxy.identity import Role
from secure_llm_proxy.settings import Settings, ThrottlingSettings
from secure_llm_proxy.settings.database_url import normalise_database_url
from tests.support.audit_log import audit_settings
from tests.support.indexed_log import Log
from tests.support.management_house import ManagementClient, ManagementRoom, make_management_room
from tests.support.postgresql import PrivatePostgreSQL

ROOMY = Settings(throttling=ThrottlingSettings(management_requests_per_minute=100_000))
RECORDS = "/api/v1/audit/records"


class Place:
    """A deployment with a log of records of two organisations' people, and of nobody's."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.log = Log(folder)
        reader = SegmentReader(audit_settings(folder))
        self.management: ManagementRoom = make_management_room(folder, ROOMY, url, reader=reader)
        room = self.management.room
        self.elsewhere = self.management.organisation("elsewhere").id
        self.owner = self.management.as_role(Role.OWNER)
        own = self.management.person("own.person", "member")
        foreign = self.management.person("foreign.person", "member", self.elsewhere)
        project = room.database.run(
            lambda session: room.organisations.create_project(session, organisation=self.elsewhere, name="Theirs")
        )
        room.database.run(lambda session: room.organisations.add_member(session, project.id, foreign.id))
        key = room.make_key("foreign.person", project=project.id).api_key
        self.own_user, self.foreign_user, self.foreign_key = own.id, foreign.id, key.kid
        self.log.add(
            {"kind": "llm.start", "ev": "CHAT_REQUEST", "usr": own.id, "ak": "kidaaaaa", "mdl": "small", "dec": "allow",
             "n_in": 12},
            {"kind": "llm.start", "ev": "CHAT_REQUEST", "usr": foreign.id, "ak": key.kid, "mdl": "small", "dec": "allow"},
            {"kind": "llm.refused", "dec": "refuse", "http": 401, "code": "missing_api_key"},
        )  # fmt: skip
        self.log.add(
            {
                "kind": "admin.result",
                "ev": "ADMIN_CHANGE",
                "act": "key.revoke",
                "subject": key.id,
                "by": f"user:{own.id}",
            },
            {"kind": "admin.result", "ev": "ADMIN_CHANGE", "act": "user.lock", "subject": own.id, "by": "host:root"},
            {
                "kind": "admin.result",
                "ev": "ADMIN_CHANGE",
                "act": "user.lock",
                "subject": foreign.id,
                "by": "host:root",
            },
            {"kind": "llm.start", "usr": own.id, "ak": "kidaaaaa", "prj": project.id},
        )
        self.shipper = IndexShipper(self.management.room.database, reader, room.clock, lambda: 1)
        self.shipper.ship()

    def change_row(self, record: str, **values: object) -> None:
        table = AuditIndexRow.metadata.tables["audit_index"]
        change = update(table).where(table.columns.id == record).values(values)
        with self.management.room.database.engine.begin() as connection:
            connection.execute(change)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    url = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = normalise_database_url(server.create_database())
    made = Place(tmp_path, url)
    yield made
    made.management.room.database.close()


def listed(client: ManagementClient, query: str = "") -> list[str]:
    answer = client.ask("GET", f"{RECORDS}?{query}")
    assert answer.status_code == 200, answer.data
    return [item["id"] for item in answer.get_json()["items"]]


# --- lists ------------------------------------------------------------------------------------------------------------


def test_an_owner_sees_every_record_newest_first_with_its_readable_members(place: Place) -> None:
    answer = place.owner.ask("GET", RECORDS).get_json()

    assert [item["id"] for item in answer["items"]] == [f"R000{n}" for n in range(7, 0, -1)]
    assert answer["next_cursor"] is None
    first = answer["items"][-1]
    assert first["time"] == "2026-11-21T12:00:01.000000Z"
    assert (first["user_id"], first["key"], first["model"], first["decision"]) == (
        place.own_user, "kidaaaaa", "small", "allow",
    )  # fmt: skip
    assert first["members"] == {"n_in": 12}


def test_pages_join_to_the_whole_list(place: Place) -> None:
    found: list[str] = []
    cursor = ""
    while True:
        answer = place.owner.ask("GET", f"{RECORDS}?limit=2{cursor}").get_json()
        found += [item["id"] for item in answer["items"]]
        if answer["next_cursor"] is None:
            break
        cursor = f"&cursor={answer['next_cursor']}"

    assert found == listed(place.owner)


def test_each_filter_finds_its_records(place: Place) -> None:
    found = {
        query: listed(place.owner, query)
        for query in (
            "type=llm.refused", "event=CHAT_REQUEST", f"user_id={place.foreign_user}", "key=kidaaaaa", "model=small",
            "decision=refuse", "code=missing_api_key", "action=user.lock", f"subject={place.foreign_user}",
            "request_id=exc_01KAHG0000000000000000TEST&type=llm.refused", "since=2026-11-21T13:00:06%2B01:00",
            "until=2026-11-21T12:00:02Z", "log=slp.default/other", "person=s_nobody", "status=complete", "project_id=prj_x",
        )
    }  # fmt: skip

    assert list(found.values()) == [
        ["R0003"], ["R0002", "R0001"], ["R0002"], ["R0007", "R0001"], ["R0002", "R0001"],
        ["R0003"], ["R0003"], ["R0006", "R0005"], ["R0006"],
        ["R0003"], ["R0007", "R0006"],
        ["R0001"], [], [], [], [],
    ]  # fmt: skip


@pytest.mark.parametrize("role", [Role.ADMIN, Role.AUDITOR])
def test_people_see_what_is_of_their_organisation_and_those_who_run_the_deployment_what_is_nobodys(
    place: Place, role: Role
) -> None:
    ours = place.management.as_role(role)
    theirs = place.management.as_role(role, place.elsewhere)

    # 4: done by ours to a key of theirs; 7: of a user of ours in a project of theirs. Neither is shown to either.
    assert listed(ours) == ["R0005", "R0003", "R0001"]
    assert listed(theirs) == ["R0006", "R0002"]
    assert theirs.ask("GET", f"{RECORDS}/R0001").status_code == 404
    assert ours.ask("GET", f"{RECORDS}/R0002").status_code == 404
    assert theirs.ask("GET", f"{RECORDS}/R0002").get_json()["verified"] is True


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("since=yesterday", "since"), ("since=2026-11-21", "since"), ("since=2026-13-21T00:00:00Z", "since"),
        ("until=0001-01-01T00:00:00%2B23:59", "until"), ("until=9999-12-31T23:59:59-23:59", "until"),
        ("since=2026-11-21T00:00:00", "since"), ("since=1700000000", "since"),
        ("cursor=MTpSMDAwMQ", "cursor"), ("cursor=x", "cursor"), ("cursor=%C3%A9", "cursor"),
        ("cursor=" + base64.urlsafe_b64encode(b"2:1.99999999999999999999.slp.a/b").decode(), "cursor"),
        ("cursor=" + base64.urlsafe_b64encode(b"2:99999999999999999.1.slp.a/b").decode().rstrip("="), None),
        ("type=", "type"), ("color=red", "color"), ("limit=0", "limit"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named_and_none_is_a_defect(tmp_path: Path, query: str, field: str | None) -> None:
    management = make_management_room(tmp_path, ROOMY)

    answer = management.as_role(Role.OWNER).ask("GET", f"{RECORDS}?{query}")

    if field is None:
        assert answer.status_code == 200, answer.data
    else:
        assert answer.status_code == 400, answer.data
        assert answer.get_json()["error"]["field"] == field
    management.room.database.close()


# --- one record -------------------------------------------------------------------------------------------------------


def test_a_record_is_read_from_its_segment(place: Place) -> None:
    answer = place.owner.ask("GET", f"{RECORDS}/R0001")

    told = answer.get_json()
    assert told["verified"] is True
    assert told["problem"] is None
    assert told["record"] == place.owner.ask("GET", RECORDS).get_json()["items"][-1]


def test_a_row_that_was_changed_is_not_shown_and_is_an_alarm(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.change_row("R0003", dec="allow")

    told = place.owner.ask("GET", f"{RECORDS}/R0003").get_json()

    assert told["verified"] is False
    assert told["record"] is None
    assert "reindex" in told["problem"]
    assert [record.levelname for record in caplog.records if "AUDIT ALARM" in record.getMessage()] == ["ERROR"]
    assert place.shipper.trouble() == told["problem"][:300]


def test_a_row_that_was_given_to_somebody_else_shows_him_nothing(place: Place) -> None:
    place.change_row("R0001", usr=place.foreign_user, ak=place.foreign_key)

    told = place.management.as_role(Role.AUDITOR, place.elsewhere).ask("GET", f"{RECORDS}/R0001").get_json()

    assert told["verified"] is False
    assert told["record"] is None
    assert place.own_user not in str(told)


def test_a_line_that_was_changed_is_not_shown_and_is_an_alarm(place: Place) -> None:
    (first, _) = segments_in(place.log.genesis.directory)
    first.path.chmod(0o640)
    first.path.write_bytes(first.path.read_bytes().replace(b'"code":"missing', b'"code":"Missing'))

    told = place.owner.ask("GET", f"{RECORDS}/R0003").get_json()

    assert told["record"] is None
    assert "damaged" in told["problem"]
    assert "damaged" in str(place.shipper.trouble())


def test_a_record_whose_segment_was_retired_says_so_without_alarm(place: Place) -> None:
    segments_in(place.log.genesis.directory)[0].path.unlink()

    told = place.owner.ask("GET", f"{RECORDS}/R0001").get_json()

    assert told["record"] is None
    assert "retired" in told["problem"]
    assert place.shipper.trouble() is None


def test_a_record_of_another_hosts_log_is_read_there(place: Place) -> None:
    place.change_row("R0001", log="slp.default/elsewhere")

    told = place.owner.ask("GET", f"{RECORDS}/R0001").get_json()

    assert "slp.default/elsewhere" in told["problem"]


def test_without_the_logs_reader_lists_are_there_and_single_records_are_not(tmp_path: Path) -> None:
    place = Place(tmp_path, None)
    away = Settings.model_validate({**ROOMY.model_dump(), "audit": {"socket": tmp_path / "nobody.sock"}})
    other = tmp_path / "other"
    other.mkdir()
    alone = make_management_room(other, away)
    database = alone.room.database
    IndexShipper(database, SegmentReader(audit_settings(tmp_path)), alone.room.clock, lambda: 1).ship()
    owner = alone.as_role(Role.OWNER)

    answer = owner.ask("GET", f"{RECORDS}/R0001")

    assert listed(owner) == listed(place.owner)
    assert answer.status_code == 503
    assert answer.get_json()["error"]["code"] == "audit_unavailable"
    database.close()
    place.management.room.database.close()


def test_an_id_that_nothing_has_is_not_found(place: Place) -> None:
    assert place.owner.ask("GET", f"{RECORDS}/R9999").status_code == 404
