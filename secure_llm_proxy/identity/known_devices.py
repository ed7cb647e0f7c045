"""Where somebody has signed in before: devices by a token that they keep, places by their network.

They give nothing by themselves: an attacker elsewhere can't hold them up by failing for their account's name
(SECURITY §2, "lockout DoS"). A sign-in makes them known for 90 days.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.identifiers import ulid
from secure_llm_proxy.foundation.upserts import insert_into
from secure_llm_proxy.identity.api_keys import random_base62
from secure_llm_proxy.identity.models import KnownDeviceRow

_PREFIX = "slp_dev_"
_SECRET_LENGTH = 43
_KNOWN_FOR = timedelta(days=90)
_PER_USER_MAX = 50


class KnownDevices:
    """Devices and places of this deployment's users. `pepper` is 32 bytes derived from SECRET_KEY; who is known under a
    previous one is known, and under the present one from the next sign-in on.
    """

    def __init__(self, clock: Clock, *, pepper: bytes, previous_peppers: Sequence[bytes] = ()) -> None:
        self._clock = clock
        self._peppers = (pepper, *previous_peppers)

    def knows_device(self, session: Session, user_id: str, device: str | None) -> bool:
        """Whether that user has signed in with this device token."""
        return self._knows(session, user_id, [_of_device(pepper, device or "") for pepper in self._peppers])

    def knows_place(self, session: Session, user_id: str, place: str) -> bool:
        return self._knows(session, user_id, [_of_place(pepper, user_id, place) for pepper in self._peppers])

    def remember(self, session: Session, user_id: str, device: str | None, place: str) -> str | None:
        """Device and place are known for 90 days from now. Returns the token of a new device, None when it was known."""
        secret = None
        if device is None or not self.knows_device(session, user_id, device):
            device = secret = _PREFIX + random_base62(_SECRET_LENGTH)
        pepper = self._peppers[0]
        for digest in (_of_device(pepper, device), _of_place(pepper, user_id, place)):
            self._store(session, user_id, digest)
        beyond = (
            select(KnownDeviceRow.id)
            .where(KnownDeviceRow.user_id == user_id)
            .order_by(KnownDeviceRow.expires_at.desc(), KnownDeviceRow.id.desc())
            .offset(_PER_USER_MAX)
        )
        if ids := session.scalars(beyond).all():
            session.execute(delete(KnownDeviceRow).where(KnownDeviceRow.id.in_(ids)))
        return secret

    def _store(self, session: Session, user_id: str, digest: bytes) -> None:
        now = self._clock.now()
        known = insert_into(session, KnownDeviceRow).values(
            id="dev_" + ulid(), user_id=user_id, digest=digest, created_at=now, expires_at=now + _KNOWN_FOR
        )
        session.execute(
            known.on_conflict_do_update(
                index_elements=[KnownDeviceRow.digest], set_={"expires_at": known.excluded.expires_at}
            )
        )

    def _knows(self, session: Session, user_id: str, digests: list[bytes]) -> bool:
        found = session.scalar(
            select(KnownDeviceRow.id)
            .where(
                KnownDeviceRow.digest.in_(digests),
                KnownDeviceRow.user_id == user_id,
                KnownDeviceRow.expires_at > self._clock.now(),
            )
            .limit(1)
        )
        return found is not None


def _of_device(pepper: bytes, device: str) -> bytes:
    return hmac.digest(pepper, b"device\0" + device.encode("utf-8", "surrogatepass"), "sha256")


def _of_place(pepper: bytes, user_id: str, place: str) -> bytes:
    return hmac.digest(pepper, f"place\0{user_id}\0{place}".encode(), "sha256")
