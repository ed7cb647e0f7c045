"""What commands are given: settings, database, accounts, and the way in which a change is recorded before it is made."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TypeVar

import click
from sqlalchemy.orm import Session

from secure_llm_proxy.audit import Change, SocketJournal, recorded, running_writer
from secure_llm_proxy.cli.database_schema import require_current_schema
from secure_llm_proxy.cli.output import warn
from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import OperatorError, ProxyError
from secure_llm_proxy.foundation.secret_values import RotatedSecret, encryption_key_of, secret_key_of
from secure_llm_proxy.identity import (
    Accounts,
    ApiKeys,
    Organisations,
    PersonKeys,
    SecondFactors,
    Sessions,
    SignIn,
    announce_revocation,
)
from secure_llm_proxy.routing.stored_providers import StoredProviders
from secure_llm_proxy.settings import AuditSettings, Settings, load_settings
from secure_llm_proxy.settings.loading import SettingsError, load_audit_writer_settings
from secure_llm_proxy.vocabulary.audit import ClearValue

T = TypeVar("T")


class CommandContext:
    """Every part is made when it is first used, so that `--help` and `doctor` work with nothing configured."""

    @cached_property
    def settings(self) -> Settings:
        return load_settings()

    @cached_property
    def audit_settings(self) -> AuditSettings:
        """The writer's own section, with its key where this user may read it; else without."""
        try:
            return load_audit_writer_settings()
        except SettingsError:
            return self.settings.audit

    @cached_property
    def clock(self) -> Clock:
        return SystemClock()

    @cached_property
    def database(self) -> Database:
        database = Database(self.settings.database)
        require_current_schema(database)
        return database

    @cached_property
    def secret_key(self) -> RotatedSecret:
        return secret_key_of(self.settings.secrets)

    @cached_property
    def person_key(self) -> bytes:
        """Makes pseudonyms of persons, as the corridor does."""
        return self.secret_key.key("slp/person")

    @cached_property
    def kept_person_keys(self) -> PersonKeys:
        return PersonKeys(
            self.clock,
            seal_key=self.encryption_key.key("slp/person-keys"),
            previous_seal_keys=self.encryption_key.previous_keys("slp/person-keys"),
        )

    @cached_property
    def person_keys(self) -> tuple[bytes, ...]:
        """`person_key`, and those that made pseudonyms before it: a person has one under each in the audit log."""
        kept = self.database.run(self.kept_person_keys.all)
        return tuple(dict.fromkeys((self.person_key, *self.secret_key.previous_keys("slp/person"), *kept)))

    @cached_property
    def accounts(self) -> Accounts:
        return Accounts(
            self.settings.identity,
            self.clock,
            pepper=self.secret_key.key("slp/key-pepper"),
            password_pepper=self.secret_key.key("slp/password-pepper"),
            previous_peppers=self.secret_key.previous_keys("slp/key-pepper"),
            previous_password_peppers=self.secret_key.previous_keys("slp/password-pepper"),
        )

    @cached_property
    def keys(self) -> ApiKeys:
        return ApiKeys(
            self.settings.identity,
            self.clock,
            pepper=self.secret_key.key("slp/key-pepper"),
            previous_peppers=self.secret_key.previous_keys("slp/key-pepper"),
        )

    @cached_property
    def organisations(self) -> Organisations:
        return Organisations(self.clock)

    @cached_property
    def encryption_key(self) -> RotatedSecret:
        return encryption_key_of(self.settings.secrets)

    @cached_property
    def second_factors(self) -> SecondFactors:
        return SecondFactors(
            self.settings.identity,
            self.clock,
            seal_key=self.encryption_key.key("slp/totp"),
            pepper=self.secret_key.key("slp/recovery-pepper"),
            previous_seal_keys=self.encryption_key.previous_keys("slp/totp"),
            previous_peppers=self.secret_key.previous_keys("slp/recovery-pepper"),
        )

    @cached_property
    def stored_providers(self) -> StoredProviders:
        return StoredProviders(
            self.database,
            self.encryption_key.key("slp/provider-keys"),
            self.clock,
            previous_seal_keys=self.encryption_key.previous_keys("slp/provider-keys"),
        )

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(
            self.settings.identity,
            self.clock,
            pepper=self.secret_key.key("slp/session-pepper"),
            previous_peppers=self.secret_key.previous_keys("slp/session-pepper"),
        )

    @cached_property
    def sign_in(self) -> SignIn:
        return SignIn(
            self.settings.identity,
            self.clock,
            self.database,
            self.accounts,
            self.second_factors,
            self.sessions,
            pepper=self.secret_key.key("slp/login-pepper"),
            previous_peppers=self.secret_key.previous_keys("slp/login-pepper"),
        )

    def change(
        self,
        action: str,
        subject: str,
        clear: Mapping[str, ClearValue],
        body: Mapping[str, object],
        apply: Callable[[Session], T],
    ) -> T:
        """Record the intent durably, apply it in one transaction, record the result; see `recorded`."""
        database = self.database
        return self.recorded(action, subject, clear, body, lambda: database.run(apply))

    def recorded(
        self,
        action: str,
        subject: str,
        clear: Mapping[str, ClearValue],
        body: Mapping[str, object],
        apply: Callable[[], T],
    ) -> T:
        """Record the intent durably, call `apply`, record the result.

        `clear` stays readable in the log, `body` is sealed; neither may hold a secret. Raises `OperatorError`, and
        applies nothing, when the intent can't be recorded.
        """
        change = Change(action, subject, f"host:{getpass.getuser()}", clear, body)
        person_key = self.person_key if change.person is not None else None
        with running_writer(self.audit_settings):
            journal = SocketJournal(self.audit_settings)
            try:
                return recorded(journal, change, apply, _warn_untold, person_key=person_key)
            except ProxyError as error:
                raise OperatorError(f"{error.public} ({error.detail or error.code})") from error
            finally:
                journal.close()

    def announce_revocation(self, kid: str) -> None:
        """Tell running workers at once; without Redis they learn it within API_KEY_CACHE_S seconds."""
        if self.settings.redis.url is not None:
            announce_revocation(self.settings.redis, kid)


def _warn_untold(made: bool, error: ProxyError) -> None:  # noqa: FBT001  the journal's result calls it
    done = "was made" if made else "was not made"
    warn(f"the change {done}, but its result could not be recorded ({error.detail or error.code}).")


pass_context = click.make_pass_decorator(CommandContext)
