"""A clock that tests turn, and an identity room over a real, migrated database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from secure_llm_proxy.cli.database_schema import run_migrations
from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, Accounts, ApiKeys, Identity, IssuedKey, Organisations
from secure_llm_proxy.settings import DatabaseSettings, IdentitySettings
from secure_llm_proxy.settings.database_url import normalise_database_url

PEPPER = b"key pepper of a test, 32 bytes.."
PASSWORD_PEPPER = b"password pepper of a test, 32 b."
EMAIL = "someone@example.org"


class ManualClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
        self._monotonic_s = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic_s += seconds


def migrated_database(url: str) -> Database:
    database = Database(DatabaseSettings.model_validate({"url": normalise_database_url(url)}))
    run_migrations(database.engine, "upgrade", "head")
    return database


def make_accounts(clock: Clock, **settings: object) -> Accounts:
    return Accounts(IdentitySettings.model_validate(settings), clock, pepper=PEPPER, password_pepper=PASSWORD_PEPPER)


@dataclass(slots=True)
class IdentityRoom:
    """Organisations, accounts, keys and one worker's identity over one database."""

    database: Database
    clock: ManualClock = field(default_factory=ManualClock)
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def accounts(self) -> Accounts:
        return make_accounts(self.clock, **self.settings)

    @property
    def organisations(self) -> Organisations:
        return Organisations(self.clock)

    @property
    def keys(self) -> ApiKeys:
        return ApiKeys(IdentitySettings.model_validate(self.settings), self.clock, pepper=PEPPER)

    def worker(self) -> Identity:
        """A worker with a memory of its own."""
        return Identity(IdentitySettings.model_validate(self.settings), self.database, PEPPER, self.clock)

    def make_user(
        self, username: str = "alice", role: str = "member", organisation: str = DEFAULT_ORGANISATION_ID
    ) -> str:
        accounts = self.accounts
        user = self.database.run(
            lambda session: accounts.create_user(
                session, username=username, email=EMAIL, role=role, organisation=organisation
            )
        )
        return user.username

    def make_key(
        self,
        username: str = "alice",
        *,
        name: str = "test key",
        kind: str = "live",
        project: str | None = None,
        expires_days: int | None = None,
        scopes: Sequence[str] | None = None,
        models: Sequence[str] | None = None,
        requests_per_minute: int | None = None,
        burst: int | None = None,
        concurrent: int | None = None,
        tokens_max: int | None = None,
        allowed_addresses: Sequence[str] | None = None,
        allowed_agents: Sequence[str] | None = None,
    ) -> IssuedKey:
        keys = self.keys
        return self.database.run(
            lambda session: keys.create_api_key(
                session,
                username=username,
                name=name,
                kind=kind,
                project=project,
                expires_days=expires_days,
                scopes=scopes,
                models=models,
                requests_per_minute=requests_per_minute,
                burst=burst,
                concurrent=concurrent,
                tokens_max=tokens_max,
                allowed_addresses=allowed_addresses,
                allowed_agents=allowed_agents,
            )
        )

    def revoke(self, key: IssuedKey) -> None:
        keys = self.keys
        self.database.run(lambda session: keys.revoke_api_key(session, key.api_key.kid))
