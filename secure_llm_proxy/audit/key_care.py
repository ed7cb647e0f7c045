"""What operators do with keys while the writer runs: destroy a person's, wrap all of them by another key-encryption key.

Through the writer and not beside it, since it alone knows which key-encryption key it wraps new keys by, holds a person's
key in memory, and writes the log. Every operation is short; `rewrap` does a chunk and is asked again until nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol

from secure_llm_proxy.audit.appender import LogUnavailable
from secure_llm_proxy.audit.blind_indexes import BlindIndexes
from secure_llm_proxy.audit.control import ControlRefused, Operation
from secure_llm_proxy.audit.format import FormatError, is_subject, strict_base64
from secure_llm_proxy.audit.keystore import REWRAP_CHUNK, ErasedKey, KeyStore, KeyStoreUnavailable
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.foundation.identifiers import ulid
from secure_llm_proxy.vocabulary.audit import ClearValue
from secure_llm_proxy.vocabulary.events import AuditType

# Names of 27 characters and commas: below the 16 KiB that metadata may take.
_KIDS_IN_A_RECORD = 400
_UNAVAILABLE = "audit_unavailable"


class OwnLog(Protocol):
    """The log, as far as the writer writes it of its own accord."""

    def record_own(self, kind: AuditType, exchange: str, clear: dict[str, ClearValue]) -> int:
        """Return the index of the record, which is on disk. Raises `LogUnavailable`."""
        ...

    def sign_now(self) -> str | None:
        """The note of a checkpoint over every line so far. Raises `LogUnavailable`."""
        ...

    @property
    def takes_records(self) -> bool: ...


class KeyCare:
    """`store` is None without encryption: there are no keys then."""

    def __init__(self, store: KeyStore | None, ring: KeyRing | None, indexes: BlindIndexes | None) -> None:
        self._store = store
        self._ring = ring
        self._indexes = indexes

    def operations(self, log: OwnLog) -> dict[str, Operation]:
        """By name, as `ControlDoor` takes them."""
        return {
            "keys": _telling(self._keys),
            "erase": _telling(lambda request: self._erase(request, log)),
            "erase-recorded": _telling(lambda request: self._erase_recorded(request, log)),
            "keks": _telling(self._keks),
            "rewrap": _telling(self._rewrap),
            "keep-system-keys": _telling(self._keep_system_keys),
            "compact": _telling(self._compact),
        }

    def tell_erased(self, log: OwnLog) -> None:
        """Afterwards the log names every key that was destroyed. Raises `LogUnavailable`."""
        if self._store is None:
            return
        try:
            for subject, some in groupby(self._store.untold(), lambda key: key.subject):
                for kids in _chunks([key.kid for key in some]):
                    clear: dict[str, ClearValue] = {"subject": subject, "keys": len(kids), "kids": ",".join(kids)}
                    n = log.record_own(AuditType.SUBJECT_ERASED, "adm_" + ulid(), clear)
                    self._store.note_told(kids, n)
        except KeyStoreUnavailable as error:
            raise LogUnavailable(str(error)) from None

    # --- erasing ------------------------------------------------------------------------------------------------------

    def _keys(self, request: Mapping[str, object]) -> Mapping[str, object]:
        store, subject = self._opened(), _subject(request)
        return {"kids": store.keys_held(subject), "erased": _told(store.erased(subject))}

    def _erase(self, request: Mapping[str, object], log: OwnLog) -> Mapping[str, object]:
        """Destroy, then tell the log, then leave no trace in the file. Done again, it finishes what failed the first time."""
        store, subject = self._opened(), _subject(request)
        _require(log)
        kids = store.erase(subject)
        note, trouble = self._finish(store, log)
        return {"kids": kids, "erased": _told(store.erased(subject)), "note": note, "trouble": trouble}

    def _erase_recorded(self, request: Mapping[str, object], log: OwnLog) -> Mapping[str, object]:
        """Keys that the log says were erased, and that a restored key store has brought back."""
        store, kids = self._opened(), request.get("kids")
        if not isinstance(kids, list) or not all(isinstance(kid, str) for kid in kids):
            raise ControlRefused("malformed", "`kids` is no list of names.")
        if request.get("dry_run") is True:
            return {"kids": store.held_of(kids), "trouble": None}
        _require(log)
        back = store.erase_keys(kids)
        _, trouble = self._finish(store, log)
        return {"kids": back, "trouble": trouble}

    def _finish(self, store: KeyStore, log: OwnLog) -> tuple[str | None, str | None]:
        """The checkpoint's note, and what could not be done."""
        if self._indexes is not None:
            self._indexes.forget()
        note, trouble = None, None
        try:
            self.tell_erased(log)
            note = log.sign_now()
            store.compact()
        except LogUnavailable as error:
            trouble = f"The keys are destroyed; the log will say so when it can be written again: {error}."
        except KeyStoreUnavailable as error:
            trouble = f"The keys are destroyed, but traces of them may be left in the file; erase again. {error}"
        return note, trouble

    # --- another key-encryption key -----------------------------------------------------------------------------------

    def _keks(self, _request: Mapping[str, object]) -> Mapping[str, object]:
        store = self._opened()
        assert self._ring is not None, "whoever has a store has the keys to it"
        return {
            "current": self._ring.current.id,
            "known": self._ring.ids,
            "counts": store.counts_by_kek(),
            "system_keys": sorted(store.system_keys_held()),
        }

    def _rewrap(self, _request: Mapping[str, object]) -> Mapping[str, object]:
        turn = self._opened().rewrap(REWRAP_CHUNK)
        return {"done": turn.done, "left": turn.left}

    def _keep_system_keys(self, request: Mapping[str, object]) -> Mapping[str, object]:
        given = request.get("keys")
        if not isinstance(given, list) or len(given) > REWRAP_CHUNK:
            raise ControlRefused("malformed", f"`keys` is no list of at most {REWRAP_CHUNK} keys.")
        try:
            keys = [(str(each["kid"]), strict_base64(each["wk"]), strict_base64(each["kc"])) for each in given]
        except (KeyError, TypeError, FormatError):
            raise ControlRefused("malformed", "A key has not `kid`, `wk` and `kc`.") from None
        self._opened().keep_system_keys(keys)
        return {"kept": len(keys)}

    def _compact(self, _request: Mapping[str, object]) -> Mapping[str, object]:
        self._opened().compact()
        return {}

    def _opened(self) -> KeyStore:
        if self._store is None:
            raise ControlRefused("no_key_store", "The audit log is not encrypted, so there are no keys.")
        return self._store


def _telling(operation: Operation) -> Operation:
    def run(request: Mapping[str, object]) -> Mapping[str, object]:
        try:
            return operation(request)
        except KeyStoreUnavailable as error:
            raise ControlRefused("key_store_unavailable", str(error)) from None

    return run


def _require(log: OwnLog) -> None:
    if not log.takes_records:
        raise ControlRefused(_UNAVAILABLE, "The audit log can't be written now, so nothing was erased.")


def _subject(request: Mapping[str, object]) -> str:
    subject = request.get("subject")
    if not is_subject(subject):
        raise ControlRefused("malformed", "`subject` is no pseudonym (s_ and 16 hexadecimal digits).")
    return subject


def _told(keys: Sequence[ErasedKey]) -> list[dict[str, object]]:
    return [{"kid": key.kid, "erased_at": key.erased_at, "n": key.told} for key in keys]


def _chunks(kids: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(kids), _KIDS_IN_A_RECORD):
        yield kids[first : first + _KIDS_IN_A_RECORD]
