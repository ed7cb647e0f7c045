"""Tries to sign in, counted before they are judged: many at once can't be more than many in a row.

Counted under an HMAC of what is counted, so that the table tells nobody who exists; unknown names are counted like others.
Source: SECURITY §2, "throttling" and "lockout DoS"; NIST SP 800-63B-4 §3.2.2; ASVS 6.3.1.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import case, delete, select
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.upserts import insert_into
from secure_llm_proxy.identity.models import LoginTroubleRow
from secure_llm_proxy.settings import IdentitySettings

# NIST's ceiling of failures in a row, over all places.
ACCOUNT_FAILURES_MAX = 100
SECOND_FACTOR_TRIES, SECOND_FACTOR_WINDOW_S = 5, 300
_COUNTED_MAX = 1_000_000
_HALF = 32
_PLACE_BITS = {4: 24, 6: 56}


@dataclass(frozen=True, slots=True)
class Trial:
    """Whether one may try. `wait_s` is how long the next try has to wait if this one fails, None when it need not."""

    allowed: bool
    wait_s: int | None


class LoginTroubles:
    """Counts tries by account and place (or known device), by account, and for second factors."""

    def __init__(self, settings: IdentitySettings, clock: Clock, *, pepper: bytes) -> None:
        self._settings = settings
        self._clock = clock
        self._pepper = pepper

    def try_at(self, session: Session, name: str, place: str) -> Trial:
        """One more try for the account of that normalised name from `place`: a network, or a device that is known."""
        return self._try(
            session,
            self._subject(name, "place", place),
            tries=self._settings.login_attempts_max,
            wait_s=self._settings.lockout_s,
        )

    def try_account(self, session: Session, name: str) -> bool:
        """One more try for the account, from wherever; False from 100 failures in a row on."""
        tried = insert_into(session, LoginTroubleRow).values(
            subject=self._subject(name, "account"), failures=1, last_at=self._clock.now(), refused_until=None
        )
        failures = session.execute(
            tried.on_conflict_do_update(
                index_elements=[LoginTroubleRow.subject],
                set_={
                    "failures": case(
                        (LoginTroubleRow.failures < _COUNTED_MAX, LoginTroubleRow.failures + 1), else_=_COUNTED_MAX
                    ),
                    "last_at": tried.excluded.last_at,
                },
            ).returning(LoginTroubleRow.failures),
            execution_options={"populate_existing": True},
        ).scalar_one()
        return failures <= ACCOUNT_FAILURES_MAX

    def try_second_factor(self, session: Session, name: str) -> Trial:
        """One more code: five of them within five minutes, then five minutes without."""
        return self._try(
            session,
            self._subject(name, "second factor"),
            tries=SECOND_FACTOR_TRIES,
            wait_s=SECOND_FACTOR_WINDOW_S,
        )

    def forget_place(self, session: Session, name: str, place: str) -> None:
        """Nothing failed there."""
        self._forget(session, self._subject(name, "place", place))

    def forget_second_factor(self, session: Session, name: str) -> None:
        self._forget(session, self._subject(name, "second factor"))

    def forget_account(self, session: Session, name: str) -> None:
        """Of the account as a whole nothing failed. Places keep their own count."""
        self._forget(session, self._subject(name, "account"))

    def forget_everything(self, session: Session, name: str) -> None:
        """Nothing counts against the account any more, wherever it was tried from."""
        session.execute(
            delete(LoginTroubleRow)
            .where(LoginTroubleRow.subject.startswith(self._half(f"account\0{name}")))
            .execution_options(synchronize_session=False)
        )

    def _try(self, session: Session, subject: str, *, tries: int, wait_s: int) -> Trial:
        """Of those that come at once `tries` are allowed, then none until `wait_s` have passed; a pause that long begins anew."""
        now = self._clock.now()
        until = now + timedelta(seconds=wait_s)
        stored = LoginTroubleRow
        failures = case((stored.last_at <= now - timedelta(seconds=wait_s), 1), else_=stored.failures + 1)
        tried = insert_into(session, stored).values(
            subject=subject, failures=1, last_at=now, refused_until=until if tries == 1 else None
        )
        counted = session.execute(
            tried.on_conflict_do_update(
                index_elements=[stored.subject],
                set_={"failures": failures, "last_at": now, "refused_until": case((failures >= tries, until))},
                where=stored.refused_until.is_(None) | (stored.refused_until <= now),
            ).returning(stored.failures)
        ).scalar_one_or_none()
        if counted is not None:
            return Trial(allowed=True, wait_s=wait_s if counted >= tries else None)
        refused_until = session.scalar(select(stored.refused_until).where(stored.subject == subject))
        left_s = 0.0 if refused_until is None else (refused_until - now).total_seconds()
        return Trial(allowed=False, wait_s=max(1, math.ceil(left_s)))

    def _forget(self, session: Session, subject: str) -> None:
        session.execute(
            delete(LoginTroubleRow)
            .where(LoginTroubleRow.subject == subject)
            .execution_options(synchronize_session=False)
        )

    def _subject(self, name: str, kind: str, where: str = "") -> str:
        """128 bits for the account, by which an operator can clear all of it, and 128 for what is counted of it."""
        # The name comes last: it may hold any character, the others none that could stand for the separator.
        return self._half(f"account\0{name}") + self._half(f"{kind}\0{where}\0{name}")

    def _half(self, text: str) -> str:
        return hmac.digest(self._pepper, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:_HALF]


def place_of(address: str) -> str:
    """The network that a client's address stands for: /24 of IPv4, /56 of IPv6, which one customer gets (RFC 6177)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "elsewhere"
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(ipaddress.ip_network(f"{parsed}/{_PLACE_BITS[parsed.version]}", strict=False))
