"""An identity room in which people sign in: accounts, second factors, sessions over one real database, and a manual clock."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import pyotp
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.identity import (
    Accounts,
    LiveSession,
    OpenedSession,
    PasswordHash,
    SecondFactors,
    SecondFactorWanted,
    SessionCallers,
    Sessions,
    SignedIn,
    SignIn,
    User,
)
from secure_llm_proxy.identity.login_troubles import LoginTroubles
from secure_llm_proxy.settings import IdentitySettings
from tests.support.identity_room import EMAIL, PASSWORD_PEPPER, PEPPER, ManualClock

T = TypeVar("T")

PASSPHRASE = "violet tram over nine hedges"
OFFICE, ELSEWHERE = "192.0.2.7", "198.51.100.9"
SEAL_KEY = b"seal key of a test, 32 bytes long"[:32]
LOGIN_PEPPER = b"login pepper of a test, 32 bytes."


@dataclass
class SignInRoom:
    """One worker's parts. Users get names that no other test has, so that tests share a database."""

    database: Database
    clock: ManualClock = field(default_factory=ManualClock)
    settings: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        section = IdentitySettings.model_validate(self.settings)
        self.section = section
        self.accounts = Accounts(section, self.clock, pepper=PEPPER, password_pepper=PASSWORD_PEPPER)
        self.second_factors = SecondFactors(section, self.clock, seal_key=SEAL_KEY, pepper=PEPPER)
        self.sessions = Sessions(section, self.clock, pepper=PEPPER)
        self.sign_in = SignIn(
            section,
            self.clock,
            self.database,
            self.accounts,
            self.second_factors,
            self.sessions,
            pepper=LOGIN_PEPPER,
        )
        self.troubles = LoginTroubles(section, self.clock, pepper=LOGIN_PEPPER)

    @property
    def argon2_checks(self) -> int:
        """How many passwords were compared with a hash, or with nobody's, so far."""
        return self.accounts._vault.checks_made

    def run(self, work: Callable[[Session], T]) -> T:
        return self.database.run(work)

    def make_user(
        self, role: str = "member", *, password: PasswordHash | None = None, mfa_required: bool = False
    ) -> User:
        name = f"u{secrets.token_hex(6)}"
        return self.run(
            lambda session: self.accounts.create_user(
                session, username=name, email=EMAIL, role=role, password=password, mfa_required=mfa_required
            )
        )

    def enrol(self, user: User) -> App:
        """A confirmed second factor. Moves the clock on, so that the code of now is unused."""
        enrolment = self.run(lambda session: self.second_factors.begin(session, user.id))
        app = App(self.clock, enrolment.secret_base32)
        app.recovery_codes = self.run(lambda session: self.second_factors.confirm(session, user.id, app.code()))
        self.clock.advance(30)
        return app

    def open_session(self, user: User, *, second_factor_at: datetime | None = None) -> OpenedSession:
        return self.run(
            lambda session: self.sessions.open(
                session,
                user.id,
                kind="token",
                state="active",
                address=OFFICE,
                agent="tests/1",
                second_factor_at=second_factor_at,
            )
        )

    def found(self, secret: str) -> LiveSession | None:
        return self.run(lambda session: self.sessions.find(session, secret))

    def check(self, user: User, code: str) -> bool:
        return self.run(lambda session: self.second_factors.check(session, user.id, code))

    def sign(
        self,
        username: str,
        password: str = PASSPHRASE,
        *,
        mfa_code: str | None = None,
        recovery_code: str | None = None,
        address: str = OFFICE,
        device: str | None = None,
    ) -> object:
        """`SignIn.password` of a tool from the office."""
        return self.sign_in.password(
            username,
            password,
            mfa_code=mfa_code,
            recovery_code=recovery_code,
            address=address,
            agent="tests/1",
            kind="token",
            device=device,
        )

    def signed_in(
        self, user: User, *, mfa_code: str | None = None, address: str = OFFICE, device: str | None = None
    ) -> SignedIn:
        signed = self.sign(user.username, mfa_code=mfa_code, address=address, device=device)
        assert isinstance(signed, SignedIn)
        return signed

    def waiting(self, user: User) -> SecondFactorWanted:
        wanted = self.sign(user.username)
        assert isinstance(wanted, SecondFactorWanted)
        return wanted

    def session_callers(self) -> SessionCallers:
        return SessionCallers(self.section, self.sessions, self.database, self.clock)


@dataclass
class App:
    """An authenticator app."""

    clock: ManualClock
    secret: str = field(repr=False)
    recovery_codes: tuple[str, ...] = ()

    def code(self, steps_from_now: int = 0) -> str:
        return pyotp.TOTP(self.secret).generate_otp(int(self.clock.now().timestamp()) // 30 + steps_from_now)
