"""What of the identity room is known only under which pepper: whether an earlier SECRET_KEY may be forgotten.

Each of these was made under a pepper derived from SECRET_KEY and can't be made again without what the person or program
holds: it moves to the present pepper when it is used, or ends by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from secure_llm_proxy.foundation.database import Model
from secure_llm_proxy.foundation.secret_values import RotatedSecret, key_mark
from secure_llm_proxy.identity.models import (
    ApiKeyRow,
    RecoveryCodeRow,
    SessionRow,
    SetupTokenRow,
    UserRow,
)

_PRESENT, _PREVIOUS, _UNKNOWN, _UNMARKED = "present", "previous", "unknown", "unmarked"


@dataclass(frozen=True, slots=True)
class PepperUse:
    """Of one kind: how many are known under the present pepper, under a previous one, under one that is not here (nobody can
    use them), and of how many it was not noted when they were made. `waiting` names some that are not under the present one.
    """

    what: str
    present: int
    previous: int
    unknown: int
    unmarked: int
    waiting: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kind:
    label: str
    row: type[Model]
    mark: InstrumentedAttribute[str | None]
    name: InstrumentedAttribute[str]
    counts: ColumnElement[bool]


class PepperUses:
    """Counts by the marks in the rows."""

    def __init__(self, secret_key: RotatedSecret) -> None:
        self._secret_key = secret_key

    def counted(self, session: Session, now: datetime, *, names_max: int = 20) -> Sequence[PepperUse]:
        """API keys, passwords, recovery codes, sessions and one-time tokens that may still be used."""
        return [self._of(session, what, kind, names_max) for what, kind in _kinds(now).items()]

    def _of(self, session: Session, what: str, kind: _Kind, names_max: int) -> PepperUse:
        present = key_mark(self._secret_key.key(kind.label))
        previous = [key_mark(key) for key in self._secret_key.previous_keys(kind.label)]
        group = case(
            (kind.mark == present, _PRESENT),
            (kind.mark.in_(previous), _PREVIOUS),
            (kind.mark.is_(None), _UNMARKED),
            else_=_UNKNOWN,
        )
        counted = select(group, func.count()).select_from(kind.row).where(kind.counts).group_by(group)
        counts: dict[str, int] = dict(session.execute(counted).all())
        waiting = (
            select(kind.name)
            .distinct()
            .where(kind.counts, kind.mark.is_distinct_from(present))
            .order_by(kind.name)
            .limit(names_max)
        )
        return PepperUse(
            what,
            counts.get(_PRESENT, 0),
            counts.get(_PREVIOUS, 0),
            counts.get(_UNKNOWN, 0),
            counts.get(_UNMARKED, 0),
            tuple(session.scalars(waiting)),
        )


def _kinds(now: datetime) -> Mapping[str, _Kind]:
    return {
        "API keys": _Kind(
            "slp/key-pepper",
            ApiKeyRow,
            ApiKeyRow.pepper,
            ApiKeyRow.kid,
            ApiKeyRow.revoked_at.is_(None) & (ApiKeyRow.expires_at > now),
        ),
        "passwords": _Kind(
            "slp/password-pepper",
            UserRow,
            UserRow.password_pepper,
            UserRow.username,
            UserRow.password_hash.is_not(None) & (UserRow.status != "disabled"),
        ),
        "recovery codes": _Kind(
            "slp/recovery-pepper",
            RecoveryCodeRow,
            RecoveryCodeRow.pepper,
            RecoveryCodeRow.user_id,
            RecoveryCodeRow.used_at.is_(None),
        ),
        "sessions": _Kind(
            "slp/session-pepper",
            SessionRow,
            SessionRow.pepper,
            SessionRow.user_id,
            SessionRow.ended_at.is_(None) & (SessionRow.expires_at > now),
        ),
        "one-time tokens": _Kind(
            "slp/key-pepper",
            SetupTokenRow,
            SetupTokenRow.pepper,
            SetupTokenRow.user_id,
            SetupTokenRow.used_at.is_(None) & (SetupTokenRow.expires_at > now),
        ),
    }
