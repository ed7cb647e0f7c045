"""The management application over a real database, in process: time is the test's, the journal a list, roles are people."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from secure_llm_proxy.admission.rules import AddressRules
from secure_llm_proxy.audit import AuditReader
from secure_llm_proxy.audit.evidence import Evidence
from secure_llm_proxy.audit.index import AuditIndex
from secure_llm_proxy.audit.record_reading import LineReader, RecordReading
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import NotFoundError
from secure_llm_proxy.identity import (
    DEFAULT_ORGANISATION_ID,
    KillSwitches,
    Organisation,
    PasswordHash,
    Role,
    SecondFactors,
    Sessions,
    SignIn,
    User,
)
from secure_llm_proxy.settings import DatabaseSettings, IdentitySettings, Settings
from secure_llm_proxy.web.admin.app import make_management_app
from secure_llm_proxy.web.admin.house import ManagementHouse
from tests.support.file_evidence import RowEvidence
from tests.support.house import SmallHouse, make_house, make_web_house
from tests.support.identity_room import EMAIL, PEPPER, IdentityRoom, ManualClock, make_accounts, migrated_database

CSRF_KEY = b"csrf key of a test, 32 bytes...."
PASSWORD = "correct horse battery staple 7"


@dataclass
class ManagementRoom:
    """One deployment with its management application."""

    room: IdentityRoom
    small: SmallHouse
    app: Flask
    house: ManagementHouse
    announced: list[str] = field(default_factory=list)

    def client(self, secret: str | None = None) -> ManagementClient:
        return ManagementClient(self.app.test_client(use_cookies=False), secret)

    def organisation(self, name: str) -> Organisation:
        """The organisation of that name, made when there is none."""
        organisations = self.room.organisations

        def find_or_make() -> Organisation:
            try:
                return self.room.database.run(lambda session: organisations.find_organisation(session, name))
            except NotFoundError:
                return self.room.database.run(lambda session: organisations.create_organisation(session, name=name))

        return find_or_make()

    def person(self, username: str, role: str, organisation: str = DEFAULT_ORGANISATION_ID) -> User:
        accounts = self.room.accounts
        return self.room.database.run(
            lambda session: accounts.create_user(
                session, username=username, email=EMAIL, role=role, organisation=organisation
            )
        )

    def with_password(self, username: str, role: str = "member") -> User:
        user = self.person(username, role)
        accounts, hashed = self.room.accounts, _hashed()
        return self.room.database.run(lambda session: accounts.set_password(session, user.id, hashed))

    def session_of(self, user: User, *, fresh: bool = True, kind: str = "token", state: str = "active") -> str:
        """The secret of a session of that person; `fresh`: the second factor was shown just now."""
        now = self.room.clock.now()
        opened = self.room.database.run(
            lambda session: self.house.sessions.open(
                session,
                user.id,
                kind="browser" if kind == "browser" else "token",
                state="pending" if state == "pending" else "active",
                address="127.0.0.1",
                agent="test",
                second_factor_at=now if fresh else None,
            )
        )
        return opened.secret

    def as_role(
        self, role: Role | str, organisation: str = DEFAULT_ORGANISATION_ID, *, fresh: bool = True
    ) -> ManagementClient:
        """A client of a new person of that role who has logged in."""
        number = len(self.room.database.run(self.room.accounts.list_users))
        return self.client(self.session_of(self.person(f"{role}-{number}", str(role), organisation), fresh=fresh))


@dataclass
class ManagementClient:
    """Asks with a session's token, if it has one."""

    flask: FlaskClient
    secret: str | None = None

    def ask(
        self, method: str, path: str, body: object | None = None, headers: dict[str, str] | None = None, **more: object
    ) -> TestResponse:
        sent = dict(headers or {})
        if self.secret is not None:
            sent.setdefault("Authorization", f"Bearer {self.secret}")
        if body is not None:
            more["json"] = body
        more.setdefault("environ_base", {"REMOTE_ADDR": "127.0.0.1"})
        return self.flask.open(path, method=method, headers=sent, **more)  # type: ignore[arg-type]  # Flask's own names


@cache
def _hashed() -> PasswordHash:
    """Of PASSWORD; a hash takes a tenth of a second, and any user may have it."""
    return make_accounts(ManualClock()).hash_password(PASSWORD, username="nobody", email=EMAIL)


@cache
def _migrated() -> bytes:
    """An empty database of the newest form: migrations take a third of a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "empty.db")
        migrated_database(f"sqlite:///{path}").close()
        with closing(sqlite3.connect(path)) as connection:
            return connection.serialize()


def make_management_room(
    folder: Path,
    settings: Settings | None = None,
    url: str | None = None,
    evidence: Evidence | None = None,
    *,
    reader: LineReader | None = None,
) -> ManagementRoom:
    settings = settings or Settings()
    if url is None:
        path = folder / "management.db"
        path.write_bytes(_migrated())
        database = Database(DatabaseSettings.model_validate({"url": f"sqlite:///{path}"}))
    else:
        database = migrated_database(url)
    room = IdentityRoom(database)
    section = IdentitySettings.model_validate(settings.identity.model_dump())
    small = make_house()
    sessions = Sessions(section, room.clock, pepper=PEPPER)
    factors = SecondFactors(section, room.clock, seal_key=b"seal key of a test, 32 bytes....", pepper=PEPPER)
    announced: list[str] = []
    house = ManagementHouse(
        database=database,
        clock=room.clock,
        journal=small.journal,
        sign_in=SignIn(section, room.clock, database, room.accounts, factors, sessions, pepper=PEPPER),
        sessions=sessions,
        second_factors=factors,
        accounts=room.accounts,
        keys=room.keys,
        organisations=room.organisations,
        kill_switches=KillSwitches(room.clock),
        address_rules=AddressRules(settings.admission, room.clock),
        refresh_address_rules=lambda: announced.append("address rules"),
        identify=room.worker().identify,
        announce=announced.append,
        csrf_key=CSRF_KEY,
        person_key=small.house.person_key,
        evidence=evidence or RowEvidence(),
        audit_index=AuditIndex(),
        # No writer runs in these tests: whoever reads the log gives a reader of its files.
        audit_records=RecordReading(reader or AuditReader(settings.audit)),
    )
    app = make_management_app(make_web_house(small, settings), house)
    return ManagementRoom(room, small, app, house, announced)
