"""The second factor: time-based one-time codes (RFC 6238) from an authenticator app, and recovery codes for its loss.

SHA-1, six digits, 30 seconds: what every app understands. The secret (160 bits) lies in the database sealed for its user
(AES-256-GCM under a key derived from ENCRYPTION_KEY, the user's id as associated data), so that neither a copied database
nor a row moved to another user is of use. A code is good once, whoever else sends it at the same moment: using it is one
compare-and-set of its time step. Recovery codes hold 120 bits and are kept as HMAC only (ASVS 6.5.1, 6.5.2).
"""

from __future__ import annotations

import base64
import hmac
import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import pyotp
import segno
from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import AuthenticationFailed, ErrorCode, InvalidRequest, PermissionDenied
from secure_llm_proxy.foundation.identifiers import ulid
from secure_llm_proxy.foundation.sealed_columns import Seal, Sealing, sealing_of
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.foundation.upserts import insert_into
from secure_llm_proxy.identity.models import RecoveryCodeRow, TotpFactorRow, UserRow
from secure_llm_proxy.identity.sessions import end_sessions_of
from secure_llm_proxy.settings import IdentitySettings

log = logging.getLogger(__name__)

STEP_S = 30
LOGIN_REFUSED = "The username, password or code is not right."
_CODE_LENGTH = 6
_ASCII_DIGITS = frozenset("0123456789")
_RECOVERY_CODES = 10
# 15 bytes are 120 bits and exactly 24 characters of base32.
_RECOVERY_CODE_BYTES = 15
_RECOVERY_CODE_LENGTH = 24
_RECOVERY_GROUP = 4
_DECOY_SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"  # noqa: S105 -- opens nothing: its answer is thrown away


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What an authenticator app is given, once. `uri` is the same as otpauth:// address, for a QR code."""

    secret_base32: str = field(repr=False)
    uri: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SecondFactorState:
    enrolled: bool
    confirmed_at: datetime | None
    recovery_codes_left: int


class SecondFactors:
    """Second factors of this deployment. `seal_key` is 32 bytes of ENCRYPTION_KEY, `pepper` 32 of SECRET_KEY; what was made
    under the previous ones is good too.
    """

    def __init__(
        self,
        settings: IdentitySettings,
        clock: Clock,
        *,
        seal_key: bytes,
        pepper: bytes,
        previous_seal_keys: Sequence[bytes] = (),
        previous_peppers: Sequence[bytes] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._seal = Seal(seal_key, previous_seal_keys)
        self._peppers = (pepper, *previous_peppers)
        self._mark = key_mark(pepper)

    def begin(self, session: Session, user_id: str) -> Enrolment:
        """A new secret, which counts from `confirm` on. Replaces one that was never confirmed.

        Raises `InvalidRequest(second_factor_exists)` when the user has a second factor: that must be removed first.
        """
        username = session.scalars(select(UserRow.username).where(UserRow.id == user_id)).one()
        secret = pyotp.random_base32()
        sealed = self._sealed(secret, user_id)
        begun = insert_into(session, TotpFactorRow).values(
            user_id=user_id, sealed_secret=sealed, last_step=0, created_at=self._clock.now(), confirmed_at=None
        )
        stored = session.execute(
            begun.on_conflict_do_update(
                index_elements=[TotpFactorRow.user_id],
                set_={"sealed_secret": begun.excluded.sealed_secret, "created_at": begun.excluded.created_at},
                where=TotpFactorRow.confirmed_at.is_(None),
            ).returning(TotpFactorRow.user_id)
        ).all()
        if not stored:
            raise InvalidRequest(
                "The account has a second factor already; it must be removed before another is set up.",
                code=ErrorCode.SECOND_FACTOR_EXISTS,
            )
        uri = pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=self._settings.mfa_issuer)
        return Enrolment(secret, uri)

    def confirm(self, session: Session, user_id: str, code: str) -> tuple[str, ...]:
        """The app is shown to work: the second factor counts from now on, and every session of the user ends.

        Returns the recovery codes, which are shown once. The code is used up. Raises
        `AuthenticationFailed(login_failed)` when it is not right or nothing was begun.
        """
        sealed = session.scalar(
            _sealed_secret(user_id).where(TotpFactorRow.confirmed_at.is_(None)),
        )
        step = self._step_of(code, self._opened(sealed, user_id))
        confirmed = None
        if step is not None:
            confirmed = session.scalar(
                update(TotpFactorRow)
                .where(
                    TotpFactorRow.user_id == user_id,
                    TotpFactorRow.confirmed_at.is_(None),
                    # Another enrolment may have begun meanwhile, and its secret was not shown to work.
                    TotpFactorRow.sealed_secret == sealed,
                    TotpFactorRow.last_step < step,
                )
                .values(last_step=step, confirmed_at=self._clock.now())
                .returning(TotpFactorRow.user_id)
                .execution_options(synchronize_session=False)
            )
        if confirmed is None:
            raise AuthenticationFailed(LOGIN_REFUSED, code=ErrorCode.LOGIN_FAILED, detail="wrong code at enrolment")
        end_sessions_of(session, user_id, "second_factor_changed", self._clock.now())
        return self._replace_recovery_codes(session, user_id)

    def check(self, session: Session, user_id: str, code: str) -> bool:
        """Whether `code` is right and was not used before; it is used up by this.

        The code of the current 30 seconds and of those before them are right (MFA_STRICT: the current one only). Takes
        exactly six ASCII digits: nothing is stripped, so that a used code can't come again in other dress
        (OpenBao GO-2025-3855).
        """
        sealed = session.scalar(
            _sealed_secret(user_id).where(TotpFactorRow.confirmed_at.is_not(None)),
        )
        step = self._step_of(code, self._opened(sealed, user_id))
        if step is None:
            return False
        used = session.execute(
            update(TotpFactorRow)
            .where(
                TotpFactorRow.user_id == user_id,
                TotpFactorRow.confirmed_at.is_not(None),
                # Whoever removed this factor and set up another meanwhile did not mean this code.
                TotpFactorRow.sealed_secret == sealed,
                TotpFactorRow.last_step < step,
            )
            .values(last_step=step)
            .returning(TotpFactorRow.user_id)
            .execution_options(synchronize_session=False)
        ).all()
        return len(used) == 1

    def use_recovery_code(self, session: Session, user_id: str, code: str) -> bool:
        """Whether `code` is one of the user's unused ones; it is used up by this. Dashes and case do not matter."""
        plain = code.replace("-", "").upper() if code.isascii() else ""
        used = session.execute(
            update(RecoveryCodeRow)
            .where(
                RecoveryCodeRow.user_id == user_id,
                RecoveryCodeRow.digest.in_([_digest(pepper, user_id, plain) for pepper in self._peppers]),
                RecoveryCodeRow.used_at.is_(None),
            )
            .values(used_at=self._clock.now())
            .returning(RecoveryCodeRow.id)
            .execution_options(synchronize_session=False)
        ).all()
        return len(used) == 1

    def check_in_vain(self, code: str) -> None:
        """The work of `check`, for somebody whose password is wrong already."""
        self._step_of(code, None)

    def new_recovery_codes(self, session: Session, user_id: str) -> tuple[str, ...]:
        """Ten fresh codes, shown once; all earlier ones are void.

        Raises `PermissionDenied(second_factor_missing)` when the user has no second factor that they could stand in for.
        """
        # The factor is held, so that nobody removes it, or makes other codes, at the same time.
        held = session.scalar(
            select(TotpFactorRow.user_id)
            .where(TotpFactorRow.user_id == user_id, TotpFactorRow.confirmed_at.is_not(None))
            .with_for_update()
        )
        if held is None:
            raise PermissionDenied(
                "The account has no second factor; set one up first.", code=ErrorCode.SECOND_FACTOR_MISSING
            )
        return self._replace_recovery_codes(session, user_id)

    def remove(self, session: Session, user_id: str) -> bool:
        """Whether there was a factor, or the beginning of one. Its recovery codes and the user's sessions end with it."""
        # First, as everywhere: the user is held before the sessions, and those before the factor.
        end_sessions_of(session, user_id, "second_factor_changed", self._clock.now())
        removed = session.execute(
            delete(TotpFactorRow).where(TotpFactorRow.user_id == user_id).returning(TotpFactorRow.user_id)
        ).all()
        session.execute(delete(RecoveryCodeRow).where(RecoveryCodeRow.user_id == user_id))
        return bool(removed)

    def state(self, session: Session, user_id: str) -> SecondFactorState:
        confirmed_at = session.scalar(select(TotpFactorRow.confirmed_at).where(TotpFactorRow.user_id == user_id))
        left = session.scalar(
            select(func.count())
            .select_from(RecoveryCodeRow)
            .where(RecoveryCodeRow.user_id == user_id, RecoveryCodeRow.used_at.is_(None))
        )
        return SecondFactorState(confirmed_at is not None, confirmed_at, left or 0)

    def sealing(self, session: Session) -> Sealing:
        """Under which keys the secrets are sealed."""
        rows = session.execute(select(TotpFactorRow.user_id, TotpFactorRow.sealed_secret))
        opened = [self._seal.opened(sealed, _bound_to(user_id)) for user_id, sealed in rows]
        return sealing_of(opened)

    def seal_again(self, session: Session) -> int:
        """Seal under the present key what stands under a previous one; how many. Nothing ends by it."""
        count = 0
        for row in session.scalars(select(TotpFactorRow).order_by(TotpFactorRow.user_id).with_for_update()):
            opened = self._seal.opened(row.sealed_secret, _bound_to(row.user_id))
            if opened is not None and not opened.is_present:
                row.sealed_secret = self._seal.sealed(opened.content, _bound_to(row.user_id))
                count += 1
        session.flush()
        return count

    def _replace_recovery_codes(self, session: Session, user_id: str) -> tuple[str, ...]:
        now = self._clock.now()
        session.execute(delete(RecoveryCodeRow).where(RecoveryCodeRow.user_id == user_id))
        codes = [base64.b32encode(os.urandom(_RECOVERY_CODE_BYTES)).decode() for _ in range(_RECOVERY_CODES)]
        session.add_all(
            RecoveryCodeRow(
                id="rec_" + ulid(),
                user_id=user_id,
                digest=_digest(self._peppers[0], user_id, code),
                pepper=self._mark,
                created_at=now,
            )
            for code in codes
        )
        session.flush()
        groups = range(0, _RECOVERY_CODE_LENGTH, _RECOVERY_GROUP)
        return tuple("-".join(code[start : start + _RECOVERY_GROUP] for start in groups) for code in codes)

    def _step_of(self, code: str, secret: str | None) -> int | None:
        """The time step whose code this is; None when it is none that counts now. Without a secret the same work."""
        well_formed = len(code) == _CODE_LENGTH and _ASCII_DIGITS.issuperset(code)
        given = code if well_formed else "000000"
        totp = pyotp.TOTP(secret or _DECOY_SECRET)
        current = int(self._clock.now().timestamp()) // STEP_S
        found = None
        for step in (current,) if self._settings.mfa_strict else (current - 1, current):
            if hmac.compare_digest(totp.generate_otp(step), given):
                found = step
        return found if well_formed and secret is not None else None

    def _sealed(self, secret: str, user_id: str) -> bytes:
        return self._seal.sealed(secret.encode(), _bound_to(user_id))

    def _opened(self, sealed: bytes | None, user_id: str) -> str | None:
        """None also when it was sealed for another user or under another key, which the operator is told."""
        if sealed is None:
            return None
        opened = self._seal.opened(sealed, _bound_to(user_id))
        if opened is None:
            log.error(
                "a second factor's secret can't be opened: ENCRYPTION_KEY is another one, or the row was moved",
                extra={"user": user_id},
            )
            return None
        return opened.content.decode()


def qr_svg(uri: str) -> str:
    """The address as a QR code: an `<svg>` for an HTML page, drawn by attributes alone, as a strict CSP asks."""
    return segno.make(uri, error="m", micro=False).svg_inline(
        scale=4, border=4, dark="#000", light="#fff", svgclass=None, lineclass=None
    )


def qr_text(uri: str) -> str:
    """The same in half blocks for a terminal, 2 modules a line."""
    drawn = io.StringIO()
    segno.make(uri, error="l", micro=False).terminal(drawn, border=2, compact=True)
    return drawn.getvalue()


def _sealed_secret(user_id: str) -> Select[bytes]:
    # Held until its code is used up: nobody may seal it again between the look and the use.
    return select(TotpFactorRow.sealed_secret).where(TotpFactorRow.user_id == user_id).with_for_update()


def _digest(pepper: bytes, user_id: str, code: str) -> bytes:
    return hmac.digest(pepper, f"{user_id}\0{code}".encode(), "sha256")


def _bound_to(user_id: str) -> bytes:
    return b"slp/totp\0" + user_id.encode()
