"""SECRET_KEY and ENCRYPTION_KEY are replaced on running hosts: nobody is refused, and the old ones are of no use at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, OperatorError
from secure_llm_proxy.foundation.secret_values import RotatedSecret, secret_key_of
from secure_llm_proxy.identity import (
    Accounts,
    ApiKeys,
    Identity,
    PepperUses,
    PersonKeys,
    SecondFactors,
    Sessions,
    SignedIn,
    SignIn,
)
from secure_llm_proxy.routing.stored_providers import KeyState, StoredProviders
from secure_llm_proxy.settings import IdentitySettings, SecretSettings
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from tests.support.identity_room import EMAIL, ManualClock, migrated_database
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.sign_in_room import ELSEWHERE, OFFICE, PASSPHRASE, App

OLD, NEW, OTHER = "the old key of a test" * 2, "the new key of a test" * 2, "a third key of a test" * 2
BEFORE, ACCEPTING = RotatedSecret(OLD), RotatedSecret(OLD, (NEW,))
SWAPPED, AFTER = RotatedSecret(NEW, (OLD,)), RotatedSecret(NEW)

T = TypeVar("T")


@dataclass
class Host:
    """The parts of one process with these secrets, as `services.py` puts them together."""

    database: Database
    secret: RotatedSecret = BEFORE
    sealing: RotatedSecret = BEFORE
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        section, secret = IdentitySettings(), self.secret
        self.keys = ApiKeys(
            section,
            self.clock,
            pepper=secret.key("slp/key-pepper"),
            previous_peppers=secret.previous_keys("slp/key-pepper"),
        )
        self.accounts = Accounts(
            section,
            self.clock,
            pepper=secret.key("slp/key-pepper"),
            password_pepper=secret.key("slp/password-pepper"),
            previous_peppers=secret.previous_keys("slp/key-pepper"),
            previous_password_peppers=secret.previous_keys("slp/password-pepper"),
        )
        self.second_factors = SecondFactors(
            section,
            self.clock,
            seal_key=self.sealing.key("slp/totp"),
            pepper=secret.key("slp/recovery-pepper"),
            previous_seal_keys=self.sealing.previous_keys("slp/totp"),
            previous_peppers=secret.previous_keys("slp/recovery-pepper"),
        )
        self.sessions = Sessions(
            section,
            self.clock,
            pepper=secret.key("slp/session-pepper"),
            previous_peppers=secret.previous_keys("slp/session-pepper"),
        )
        self.sign_in = SignIn(
            section,
            self.clock,
            self.database,
            self.accounts,
            self.second_factors,
            self.sessions,
            pepper=secret.key("slp/login-pepper"),
            previous_peppers=secret.previous_keys("slp/login-pepper"),
        )
        self.providers = StoredProviders(
            self.database,
            self.sealing.key("slp/provider-keys"),
            self.clock,
            previous_seal_keys=self.sealing.previous_keys("slp/provider-keys"),
        )
        self.person_keys = PersonKeys(
            self.clock,
            seal_key=self.sealing.key("slp/person-keys"),
            previous_seal_keys=self.sealing.previous_keys("slp/person-keys"),
        )

    @cached_property
    def worker(self) -> Identity:
        return self.new_worker()

    def new_worker(self) -> Identity:
        return Identity(
            IdentitySettings(),
            self.database,
            self.secret.key("slp/key-pepper"),
            self.clock,
            previous_peppers=self.secret.previous_keys("slp/key-pepper"),
        )

    def become(self, secret: RotatedSecret, sealing: RotatedSecret | None = None) -> Host:
        """Another process over the same database, later in the rotation."""
        return Host(self.database, secret, sealing or self.sealing, self.clock)

    def run(self, work: Callable[[Session], T]) -> T:
        return self.database.run(work)

    def make_user(self, *, password: bool = False) -> str:
        hashed = self.accounts.hash_password(PASSPHRASE, username="ada", email=EMAIL) if password else None
        user = self.run(
            lambda session: self.accounts.create_user(
                session, username="ada", email=EMAIL, role="member", password=hashed
            )
        )
        return user.id

    def make_key(self) -> str:
        issued = self.run(lambda session: self.keys.create_api_key(session, username="ada", name="key"))
        return issued.secret

    def sign(self, *, device: str | None = None, address: str = OFFICE, mfa_code: str | None = None) -> SignedIn:
        signed = self.sign_in.password(
            "ada", PASSPHRASE, mfa_code=mfa_code, address=address, agent="tests/1", kind="token", device=device
        )
        assert isinstance(signed, SignedIn)
        return signed

    def recognises(self, key: str) -> bool:
        try:
            self.new_worker().identify((key,))
        except AuthenticationFailed:
            return False
        return True

    def uses(self) -> dict[str, tuple[int, int, int, int]]:
        counted = self.run(lambda session: PepperUses(self.secret).counted(session, self.clock.now()))
        return {use.what: (use.present, use.previous, use.unknown, use.unmarked) for use in counted}


@pytest.fixture(params=["sqlite", "postgresql"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = server.create_database()
    database = migrated_database(url)
    yield Host(database)
    database.close()


@pytest.fixture
def sqlite_host(tmp_path: Path) -> Iterator[Host]:
    database = migrated_database(f"sqlite:///{tmp_path / 'app.db'}")
    yield Host(database)
    database.close()


def statements_of(host: Host) -> list[str]:
    statements: list[str] = []
    event.listen(
        host.database.engine, "before_cursor_execute", lambda _c, _cu, statement, *_: statements.append(statement)
    )
    return statements


# --- API keys ---------------------------------------------------------------------------------------------------------


def test_a_key_works_in_every_step_and_under_the_new_secret_alone_once_it_was_used(host: Host) -> None:
    host.make_user()
    used, unused = host.make_key(), host.make_key()
    swapped = host.become(SWAPPED)

    callers = [host.become(secret).worker.identify((used,)) for secret in (BEFORE, ACCEPTING, SWAPPED)]
    swapped.worker.identify((used,))
    before_flush = swapped.uses()["API keys"]
    swapped.worker.flush_last_used()

    assert callers[0] == callers[1] == callers[2]
    assert before_flush == (0, 2, 0, 0)
    assert swapped.uses()["API keys"] == (1, 1, 0, 0)
    after = host.become(AFTER)
    assert (after.recognises(used), after.recognises(unused)) == (True, False)
    assert after.uses()["API keys"] == (1, 0, 1, 0)
    assert not host.become(BEFORE).recognises(used)


def test_no_request_is_refused_while_hosts_are_in_different_steps(host: Host) -> None:
    host.make_user()
    key = host.make_key()
    for earlier, later in ((BEFORE, ACCEPTING), (ACCEPTING, SWAPPED), (SWAPPED, AFTER)):
        old, new = host.become(earlier).worker, host.become(later).worker

        for _ in range(3):
            for worker in (old, new):
                worker.identify((key,))
                worker.flush_last_used()
                host.clock.advance(6)

        # Whoever is last to store it is on the side that goes on.
        new.identify((key,))
        new.flush_last_used()
        host.clock.advance(6)


def test_what_is_wrong_with_a_key_is_told_under_an_earlier_secret_too(host: Host) -> None:
    host.make_user()
    key = host.make_key()
    host.run(lambda session: host.keys.revoke_api_key(session, key.split("_")[2]))
    swapped = host.become(SWAPPED)

    with pytest.raises(AuthenticationFailed) as revoked:
        swapped.worker.identify((key,))
    with pytest.raises(AuthenticationFailed) as unknown:
        swapped.worker.identify((key[:-1] + ("a" if key[-1] != "a" else "b"),))

    assert (revoked.value.code, unknown.value.code) == (ErrorCode.API_KEY_REVOKED, ErrorCode.INVALID_API_KEY)


def test_a_key_of_a_third_secret_is_nobodys_whatever_is_accepted(sqlite_host: Host) -> None:
    sqlite_host.make_user()
    stranger = sqlite_host.become(RotatedSecret(OTHER)).make_key()

    assert not sqlite_host.become(SWAPPED).recognises(stranger)
    assert sqlite_host.become(SWAPPED).uses()["API keys"] == (0, 0, 1, 0)


def test_an_earlier_secret_costs_a_question_at_a_keys_first_use_and_none_where_there_is_none(sqlite_host: Host) -> None:
    sqlite_host.make_user()
    keys = [sqlite_host.make_key() for _ in range(3)]
    plain, swapped = sqlite_host.new_worker(), sqlite_host.become(SWAPPED).new_worker()
    statements = statements_of(sqlite_host)

    def asked_for(worker: Identity, key: str) -> int:
        statements.clear()
        worker.identify((key,))
        return sum("FROM api_keys" in statement for statement in statements)

    # The first brings the page with the others.
    assert [asked_for(plain, key) for key in keys] == [2, 0, 0]
    assert [asked_for(swapped, key) for key in keys] == [3, 0, 0]
    assert [asked_for(swapped, key) for key in keys] == [0, 0, 0]
    swapped.flush_last_used()
    assert sqlite_host.become(SWAPPED).uses()["API keys"] == (3, 0, 0, 0)


def test_while_the_database_is_away_nothing_of_a_renewal_is_lost(sqlite_host: Host) -> None:
    sqlite_host.make_user()
    key = sqlite_host.make_key()
    swapped = sqlite_host.become(SWAPPED)
    swapped.worker.identify((key,))
    sqlite_host.run(lambda session: session.execute(text("ALTER TABLE api_keys RENAME TO away")))

    written = swapped.worker.flush_last_used()
    sqlite_host.run(lambda session: session.execute(text("ALTER TABLE away RENAME TO api_keys")))
    swapped.worker.flush_last_used()

    assert written == 0
    assert sqlite_host.become(AFTER).recognises(key)


def test_a_key_of_a_release_that_noted_no_mark_is_marked_by_its_use(host: Host) -> None:
    host.make_user()
    key = host.make_key()
    host.run(lambda session: session.execute(text("UPDATE api_keys SET pepper = NULL")))
    unmarked = host.uses()["API keys"]

    host.worker.identify((key,))
    host.worker.flush_last_used()

    assert (unmarked, host.uses()["API keys"]) == ((0, 0, 0, 1), (1, 0, 0, 0))


def test_a_leaked_key_is_known_under_an_earlier_secret(sqlite_host: Host) -> None:
    sqlite_host.make_user()
    key = sqlite_host.make_key()
    swapped = sqlite_host.become(SWAPPED)

    assert list(sqlite_host.run(lambda session: swapped.keys.recognised(session, [key]))) == [key]


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_password_a_session_and_a_device_outlive_the_secret(host: Host) -> None:
    host.make_user(password=True)
    signed = host.sign()
    swapped, after = host.become(SWAPPED), host.become(AFTER)

    still = swapped.run(lambda session: swapped.sessions.find(session, signed.secret))
    again = swapped.sign(device=signed.device)

    assert still is not None
    assert still.id == signed.session.id
    assert again.device is None  # it is known
    assert swapped.uses()["passwords"] == (1, 0, 0, 0)
    assert swapped.uses()["sessions"] == (1, 1, 0, 0)
    assert after.sign(device=signed.device).device is None
    assert after.run(lambda session: after.sessions.find(session, signed.secret)) is None


def test_a_wrong_password_costs_the_same_for_everybody_while_two_secrets_are_accepted(sqlite_host: Host) -> None:
    sqlite_host.make_user(password=True)
    swapped = sqlite_host.become(SWAPPED)
    vault = swapped.accounts._vault

    def checks_of(username: str) -> int:
        before = vault.checks_made
        with pytest.raises(AuthenticationFailed):
            swapped.sign_in.password(username, "wrong", address=ELSEWHERE, agent="tests/1", kind="token")
        return vault.checks_made - before

    assert (checks_of("ada"), checks_of("nobody")) == (2, 2)


def test_a_one_time_token_and_a_recovery_code_of_before_are_good_once(host: Host) -> None:
    user = host.make_user()
    token = host.run(lambda session: host.accounts.start_setup(session, "ada"))
    enrolment = host.run(lambda session: host.second_factors.begin(session, user))
    app = App(host.clock, enrolment.secret_base32)
    first, second, *_ = host.run(lambda session: host.second_factors.confirm(session, user, app.code()))
    swapped = host.become(SWAPPED)

    holder = swapped.run(lambda session: swapped.accounts.token_holder(session, token.secret))
    used = [swapped.run(lambda session: swapped.second_factors.use_recovery_code(session, user, first)) for _ in "ab"]

    assert holder.id == user
    assert used == [True, False]
    after = host.become(AFTER)
    assert not after.run(lambda session: after.second_factors.use_recovery_code(session, user, second))
    assert swapped.uses()["recovery codes"] == (0, 9, 0, 0)
    assert swapped.uses()["one-time tokens"] == (0, 1, 0, 0)


# --- what is sealed ---------------------------------------------------------------------------------------------------


def test_what_is_sealed_is_read_under_both_keys_and_sealed_again_under_the_new_one(host: Host) -> None:
    user = host.make_user()
    enrolment = host.run(lambda session: host.second_factors.begin(session, user))
    app = App(host.clock, enrolment.secret_base32)
    host.run(lambda session: host.second_factors.confirm(session, user, app.code()))
    definition = ProviderDefinition(
        "mine", "openai_compatible", "https://models.example/v1", keys=(SecretStr("sk-sealed"),)
    )
    host.run(lambda session: host.providers.add(session, definition, created_by="test"))
    host.run(lambda session: host.person_keys.keep(session, [b"p" * 32]))
    sealed = (host.second_factors, host.providers, host.person_keys)
    swapped, after = host.become(BEFORE, SWAPPED), host.become(BEFORE, AFTER)
    host.clock.advance(30)

    code_is_right = swapped.run(lambda session: swapped.second_factors.check(session, user, app.code()))
    read = [each.definitions()[0].keys for each in (host.providers, swapped.providers)]
    counted = [swapped.run(each.sealing) for each in (swapped.second_factors, swapped.providers, swapped.person_keys)]
    again = [swapped.run(each.seal_again) for each in (swapped.second_factors, swapped.providers, swapped.person_keys)]
    once_more = [
        swapped.run(each.seal_again) for each in (swapped.second_factors, swapped.providers, swapped.person_keys)
    ]
    host.clock.advance(30)

    assert code_is_right
    assert read[0] == read[1]
    assert [(each.present, each.previous, each.unreadable) for each in counted] == [(0, 1, 0)] * 3
    assert (again, once_more) == ([1, 1, 1], [0, 0, 0])
    assert after.run(lambda session: after.second_factors.check(session, user, app.code()))
    assert after.providers.definitions()[0].keys == read[0]
    assert after.run(after.person_keys.all) == (b"p" * 32,)
    assert [host.run(each.sealing).unreadable for each in sealed] == [1, 1, 1]
    assert host.run(lambda session: host.providers.find(session, "mine")).key_state is KeyState.UNREADABLE
    with pytest.raises(OperatorError, match="ENCRYPTION_KEY_PREVIOUS"):
        host.run(host.person_keys.all)


def test_keys_of_pseudonyms_are_kept_once_newest_first(sqlite_host: Host) -> None:
    keep = sqlite_host.person_keys.keep
    first = sqlite_host.run(lambda session: keep(session, [b"a" * 32]))
    sqlite_host.clock.advance(1)
    second = sqlite_host.run(lambda session: keep(session, [b"a" * 32, b"b" * 32]))

    assert (first, second) == (1, 1)
    assert sqlite_host.run(sqlite_host.person_keys.all) == (b"b" * 32, b"a" * 32)


# --- the setting ------------------------------------------------------------------------------------------------------


def test_other_keys_are_told_apart_by_commas_and_the_present_one_is_not_among_them() -> None:
    secrets = SecretSettings(
        secret_key=SecretStr("now"), secret_keys_previous=SecretStr(" before, now,, older ,before")
    )

    assert secret_key_of(secrets) == RotatedSecret("now", ("before", "older"))
