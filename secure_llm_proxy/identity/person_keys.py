"""What made pseudonyms of persons before SECRET_KEY was replaced: kept sealed, so that a person is found in older records.

Whoever asks to be erased is erased from all of the audit log, and the log names a person by a pseudonym that a key derived
from SECRET_KEY makes (`slp/person`). Without these keys what was written before a rotation could not be found again.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.sealed_columns import Seal, Sealing, sealing_of
from secure_llm_proxy.foundation.secret_values import key_mark
from secure_llm_proxy.foundation.upserts import insert_into
from secure_llm_proxy.identity.models import PersonKeyRow


class PersonKeys:
    """The kept ones. `seal_key` is 32 bytes of ENCRYPTION_KEY; what was sealed under a previous one is opened too."""

    def __init__(self, clock: Clock, *, seal_key: bytes, previous_seal_keys: Sequence[bytes] = ()) -> None:
        self._clock = clock
        self._seal = Seal(seal_key, previous_seal_keys)

    def keep(self, session: Session, keys: Sequence[bytes]) -> int:
        """How many of them were not kept already."""
        count = 0
        for key in keys:
            mark = key_mark(key)
            kept = session.execute(
                insert_into(session, PersonKeyRow)
                .values(mark=mark, sealed_key=self._seal.sealed(key, _bound_to(mark)), created_at=self._clock.now())
                .on_conflict_do_nothing()
                .returning(PersonKeyRow.mark)
            ).all()
            count += len(kept)
        return count

    def all(self, session: Session) -> tuple[bytes, ...]:
        """Newest first. Raises `OperatorError` when one can't be opened: what it would find must not be passed over."""
        opened = [self._seal.opened(row.sealed_key, _bound_to(row.mark)) for row in session.scalars(_rows())]
        found = tuple(one.content for one in opened if one is not None)
        if len(found) < len(opened):
            raise OperatorError(
                "A kept person key can't be opened: ENCRYPTION_KEY is another one. Put the key that sealed it into "
                "ENCRYPTION_KEY_PREVIOUS; `manage.py secrets status` shows how many there are."
            )
        return found

    def marks(self, session: Session) -> frozenset[str]:
        """`key_mark` of each that is kept."""
        return frozenset(session.scalars(select(PersonKeyRow.mark)))

    def sealing(self, session: Session) -> Sealing:
        return sealing_of(self._seal.opened(row.sealed_key, _bound_to(row.mark)) for row in session.scalars(_rows()))

    def seal_again(self, session: Session) -> int:
        """Seal under the present key what stands under a previous one; how many."""
        count = 0
        for row in session.scalars(_rows().with_for_update()):
            opened = self._seal.opened(row.sealed_key, _bound_to(row.mark))
            if opened is not None and not opened.is_present:
                row.sealed_key = self._seal.sealed(opened.content, _bound_to(row.mark))
                count += 1
        session.flush()
        return count


def _rows() -> Select[PersonKeyRow]:
    return select(PersonKeyRow).order_by(PersonKeyRow.created_at.desc(), PersonKeyRow.mark)


def _bound_to(mark: str) -> bytes:
    return b"slp/person-keys\0" + mark.encode()
