"""Providers that operators configure by command, kept in the database, their keys sealed.

The keys of a provider lie there as one box (AES-256-GCM under a key derived from ENCRYPTION_KEY), bound to the provider's
name and origin (scheme, host, port): neither a copied database, nor a box moved to another row, nor a URL changed in the
row sends a key anywhere. A changed URL erases the keys, whoever changes it (SECURITY D16); a provider without the keys that it
needs is not asked at all. Each change advances a revision in its own transaction, by which workers see it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from urllib.parse import urlsplit

import gevent
import orjson
from pydantic import SecretStr
from sqlalchemy import CursorResult, Select, delete, select, update
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.clock import Clock, SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError, OperatorError, StaleError, Unavailable
from secure_llm_proxy.foundation.identifiers import ulid
from secure_llm_proxy.foundation.sealed_columns import Opened, Seal, Sealing, sealing_of
from secure_llm_proxy.foundation.upserts import insert_into
from secure_llm_proxy.routing.tables import ProviderRow, ProvidersRevisionRow
from secure_llm_proxy.vocabulary.providers import Patience, ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

log = logging.getLogger(__name__)

REFRESH_S = 2.0
"""A change is in force everywhere within 5 s, a slow look at the database included."""

_PATIENCE_S = 3.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]{1,4096}")
_TAG = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VISIBLE = re.compile(r"[!-~]*")
_KEYS_MAX = 32
_URL_CHARACTERS_MAX = 500
_QUERY_CHARACTERS_MAX = 200
_MODEL_CHARACTERS_MAX = 200
_CREATOR_CHARACTERS_MAX = 100
_DEFAULT_PORT = {"http": 80, "https": 443}


class StoredProviderExists(ConflictError):
    """A provider of that name is stored already."""


class NoSuchStoredProvider(NotFoundError):
    """No stored provider has that name."""


class StoredProviderChanged(StaleError):
    """The provider is not the version that the caller looked at."""


class KeyState(StrEnum):
    """What is known of the keys of a stored provider."""

    SET = "set"
    NOT_NEEDED = "not needed"
    MISSING = "missing"
    """It was erased with a change of the URL, or never given: the provider is not asked."""
    UNREADABLE = "unreadable"
    """Sealed for another name or origin, or under another ENCRYPTION_KEY: the provider is not asked."""


@dataclass(frozen=True, slots=True)
class StoredProvider:
    """One row as operators may see it: `definition` is without keys."""

    id: str
    definition: ProviderDefinition
    key_state: KeyState
    created_by: str
    created_at: datetime
    changed_at: datetime
    version: int


def new_provider_id() -> str:
    return "prv_" + ulid()


def origin_of(base_url: str) -> str:
    """`https://host:port`, which a provider's keys are bound to. Raises `OperatorError` for what is no URL of a provider."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
        host = parts.hostname or ""
        host = host if ":" in host else host.encode("idna").decode("ascii").lower()
    except ValueError:
        raise OperatorError("That is not a URL. Example: https://api.openai.com/v1") from None
    if parts.scheme not in _DEFAULT_PORT or not host or not base_url.isprintable():
        raise OperatorError("The URL must look like https://host[:port]/path, with http or https.")
    if "@" in parts.netloc:
        raise OperatorError("The URL must not hold a user name or password; the key is asked for apart.")
    if parts.query or parts.fragment:
        raise OperatorError("The URL must end with its path; what stands behind a `?` is given apart.")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{_DEFAULT_PORT[parts.scheme] if port is None else port}"


class StoredProviders:
    """The stored providers of this deployment. `seal_key` is 32 bytes of ENCRYPTION_KEY (`slp/provider-keys`); what was sealed
    under a previous one is opened too.

    What takes a session works within it, and leaves the commit to its owner.
    """

    def __init__(
        self,
        database: Database,
        seal_key: bytes,
        clock: Clock | None = None,
        *,
        previous_seal_keys: Sequence[bytes] = (),
    ) -> None:
        self._database = database
        self._seal = Seal(seal_key, previous_seal_keys)
        self._clock = clock or SystemClock()

    def definitions(self) -> tuple[ProviderDefinition, ...]:
        """Those that may be asked, by name. One whose keys are missing or can't be opened is left out, which the operator is
        told. Raises `Unavailable`.
        """
        rows = self._database.run(lambda session: list(session.scalars(select(ProviderRow).order_by(ProviderRow.name))))
        usable = []
        for row in rows:
            keys, state = self._keys_of(row)
            why = f"its key is {state.value}" if state in (KeyState.MISSING, KeyState.UNREADABLE) else None
            if why is None and row.kind not in provider_kinds():
                why = f"there is no kind {row.kind}"
            if why is None:
                usable.append(_definition(row, keys))
            else:
                log.error("a stored provider is not asked", extra={"provider": row.name, "why": why})
        return tuple(usable)

    def revision(self) -> int:
        """Advances with every change; 0 before the first. One row of one column. Raises `Unavailable`."""
        return self._database.run(lambda session: session.scalar(select(ProvidersRevisionRow.revision)) or 0)

    def list_providers(self, session: Session) -> list[StoredProvider]:
        """All of them, by name."""
        return [self._shown(row) for row in session.scalars(select(ProviderRow).order_by(ProviderRow.name))]

    def find(self, session: Session, name: str) -> StoredProvider:
        """Raises `NoSuchStoredProvider`."""
        return self._shown(_row(session, name))

    def require_addable(self, definition: ProviderDefinition) -> None:
        """Raise `OperatorError` with the reason when no such provider can be stored."""
        if not _NAME.fullmatch(definition.name):
            raise OperatorError(
                f"{definition.name!r} can't be a provider's name: use a-z, 0-9, dot, hyphen and underscore, at most 64."
            )
        kinds = provider_kinds()
        if definition.kind not in kinds:
            raise OperatorError(f"There is no kind of provider {definition.kind!r}; there are {', '.join(kinds)}.")
        _require_url(definition.base_url, definition.query)
        _require_keys(definition.keys)
        for model in definition.models:
            if not model or len(model) > _MODEL_CHARACTERS_MAX or not model.isprintable():
                raise OperatorError(f"{model!r} can't be a model's name (1 to {_MODEL_CHARACTERS_MAX} characters).")
        for key, value in definition.tags.items():
            if not (_TAG.fullmatch(key) and _TAG.fullmatch(value)):
                raise OperatorError(f"{key}={value} can't be a tag: use a-z, 0-9, hyphen and underscore on both sides.")
        for what, seconds in _patience(definition.patience).items():
            if not 0 < seconds < float("inf"):
                raise OperatorError(f"The timeout {what} must be more than 0 seconds.")
        for wire_format, path in (definition.formats or {}).items():
            _require_path(wire_format, path)

    def add(
        self, session: Session, definition: ProviderDefinition, *, created_by: str, provider_id: str | None = None
    ) -> StoredProvider:
        """The provider as it is stored now. Without keys it is one that needs none.

        Raises `StoredProviderExists`, and `OperatorError` as `require_addable` does.
        """
        self.require_addable(definition)
        now = self._clock.now()
        made = session.execute(
            insert_into(session, ProviderRow)
            .values(
                id=provider_id or new_provider_id(),
                name=definition.name,
                kind=definition.kind,
                base_url=definition.base_url,
                query=definition.query,
                needs_key=bool(definition.keys),
                sealed_keys=self._sealed(definition.name, definition.base_url, definition.keys),
                models=list(definition.models),
                tags=dict(definition.tags),
                patience=_patience(definition.patience),
                formats=None if definition.formats is None else {k.value: v for k, v in definition.formats.items()},
                usage_in_streams=definition.usage_in_streams,
                created_by=created_by[:_CREATOR_CHARACTERS_MAX],
                created_at=now,
                changed_at=now,
                version=1,
            )
            .on_conflict_do_nothing()
        )
        if not _changed(made):
            there = _row(session, definition.name)
            raise StoredProviderExists(
                f"A provider {definition.name} is stored already ({there.id}, made by {there.created_by}); "
                "remove it, or choose another name."
            )
        _advance_revision(session)
        return self.find(session, definition.name)

    def change_url(
        self, session: Session, name: str, base_url: str, *, query: str = "", version: int | None = None
    ) -> StoredProvider:
        """Where the provider lives from now on. Its keys are erased: they were given for another place.

        Raises `NoSuchStoredProvider`, `StoredProviderChanged`, and `OperatorError` for a URL that can't be used.
        """
        _require_url(base_url, query)
        return self._change(session, name, version, {"base_url": base_url, "query": query, "sealed_keys": None})

    def set_keys(
        self, session: Session, name: str, keys: Iterable[SecretStr], *, version: int | None = None
    ) -> StoredProvider:
        """The provider with these keys instead of those that it had; none: it needs none.

        Raises as `change_url` does.
        """
        given = tuple(keys)
        _require_keys(given)
        row = _row(session, name)
        if version is None:
            version = row.version  # the keys are sealed for the URL that was read here
        sealed = self._sealed(name, row.base_url, given)
        return self._change(session, name, version, {"needs_key": bool(given), "sealed_keys": sealed})

    def remove(self, session: Session, name: str, *, version: int | None = None) -> StoredProvider:
        """The provider that was there and no longer is, nor its keys. Raises as `find` does, and `StoredProviderChanged`."""
        there = self.find(session, name)
        wanted = there.version if version is None else version
        gone = session.execute(
            delete(ProviderRow)
            .where(ProviderRow.name == name, ProviderRow.version == wanted)
            .execution_options(synchronize_session=False)
        )
        if not _changed(gone):
            raise StoredProviderChanged(f"Provider {name} was changed meanwhile; look at it again.")
        _advance_revision(session)
        return there

    def sealing(self, session: Session) -> Sealing:
        """Under which keys the providers' keys are sealed."""
        return sealing_of(map(self._opened, session.scalars(_with_keys())))

    def seal_again(self, session: Session) -> int:
        """Seal under the present key what stands under a previous one; how many. Nobody need read them anew for it."""
        count = 0
        for row in session.scalars(_with_keys().with_for_update()):
            opened = self._opened(row)
            if opened is not None and not opened.is_present:
                row.sealed_keys = self._seal.sealed(opened.content, _bound_to(row.name, row.base_url))
                count += 1
        session.flush()
        return count

    def _change(self, session: Session, name: str, version: int | None, values: Mapping[str, object]) -> StoredProvider:
        there = _row(session, name)
        changed = session.execute(
            update(ProviderRow)
            .where(ProviderRow.name == name, ProviderRow.version == (there.version if version is None else version))
            .values(**values, changed_at=self._clock.now(), version=ProviderRow.version + 1)
            .execution_options(synchronize_session=False)
        )
        if not _changed(changed):
            raise StoredProviderChanged(f"Provider {name} was changed meanwhile; look at it again.")
        _advance_revision(session)
        return self.find(session, name)

    def _shown(self, row: ProviderRow) -> StoredProvider:
        return StoredProvider(
            id=row.id,
            definition=_definition(row, ()),
            key_state=self._keys_of(row)[1],
            created_by=row.created_by,
            created_at=row.created_at,
            changed_at=row.changed_at,
            version=row.version,
        )

    def _sealed(self, name: str, base_url: str, keys: tuple[SecretStr, ...]) -> bytes | None:
        if not keys:
            return None
        content = orjson.dumps([key.get_secret_value() for key in keys])
        return self._seal.sealed(content, _bound_to(name, base_url))

    def _keys_of(self, row: ProviderRow) -> tuple[tuple[SecretStr, ...], KeyState]:
        if not row.needs_key:
            return (), KeyState.NOT_NEEDED
        if row.sealed_keys is None:
            return (), KeyState.MISSING
        if (opened := self._opened(row)) is None:
            return (), KeyState.UNREADABLE
        return tuple(SecretStr(key) for key in orjson.loads(opened.content)), KeyState.SET

    def _opened(self, row: ProviderRow) -> Opened | None:
        try:
            return self._seal.opened(row.sealed_keys or b"", _bound_to(row.name, row.base_url))
        except OperatorError:  # its URL is none any more
            return None


class StoredProviderReader:
    """Calls `on_change` with the stored providers whenever they changed. One per worker."""

    def __init__(self, stored: StoredProviders, on_change: Callable[[tuple[ProviderDefinition, ...]], object]) -> None:
        self._stored = stored
        self._on_change = on_change
        self._revision: int | None = None
        self._refused: int | None = None
        self._away = False

    def refresh(self) -> None:
        """Look at the revision, and read the providers if it is another one than the last time.

        Database away, or no answer within 3 s, or providers that `on_change` refuses with `OperatorError`: the last known ones
        stay, the operator is told once, and the change is offered again the next time.
        """
        patience = gevent.Timeout(_PATIENCE_S)
        try:
            with patience:
                revision = self._stored.revision()
                if revision == self._revision:
                    self._away = False
                    return
                definitions = self._stored.definitions()
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            self._note_away("no answer in time")
            return
        except Unavailable as error:
            self._note_away(error.detail)
            return
        self._away = False
        try:
            self._on_change(definitions)
        except OperatorError as error:
            if self._refused != revision:
                log.error("stored providers can't be used, the last known ones stay", extra={"detail": str(error)})  # noqa: TRY400  its text says it all
            self._refused = revision
            return
        self._revision = revision

    def _note_away(self, why: str | None) -> None:
        if not self._away:
            log.warning("stored providers could not be read, the last known ones stay", extra={"detail": why})
        self._away = True


def _row(session: Session, name: str) -> ProviderRow:
    row = session.scalars(
        select(ProviderRow).where(ProviderRow.name == name).execution_options(populate_existing=True)
    ).one_or_none()
    if row is None:
        raise NoSuchStoredProvider(f"There is no stored provider {name!r}.")
    return row


def _with_keys() -> Select[ProviderRow]:
    return select(ProviderRow).where(ProviderRow.sealed_keys.is_not(None)).order_by(ProviderRow.name)


def _definition(row: ProviderRow, keys: tuple[SecretStr, ...]) -> ProviderDefinition:
    formats = None if row.formats is None else {WireFormat(name): path for name, path in row.formats.items()}
    return ProviderDefinition(
        name=row.name,
        kind=row.kind,
        base_url=row.base_url,
        keys=keys,
        query=row.query,
        models=tuple(row.models),
        patience=Patience(**row.patience),
        tags=row.tags,
        formats=formats,
        usage_in_streams=row.usage_in_streams,
        source="database",
    )


def _patience(patience: Patience) -> dict[str, float]:
    return {name: seconds for name, seconds in asdict(patience).items() if seconds is not None}


def _require_url(base_url: str, query: str) -> None:
    origin_of(base_url)
    if len(base_url) > _URL_CHARACTERS_MAX or base_url.endswith("/"):
        raise OperatorError(f"The URL must not end with a slash, nor be longer than {_URL_CHARACTERS_MAX} characters.")
    if len(query) > _QUERY_CHARACTERS_MAX or not _VISIBLE.fullmatch(query) or "#" in query:
        raise OperatorError("What stands behind the URL's `?` must be plain ASCII without spaces, like api-version=v1.")


def _require_keys(keys: tuple[SecretStr, ...]) -> None:
    if len(keys) > _KEYS_MAX:
        raise OperatorError(f"A provider has at most {_KEYS_MAX} keys.")
    if not all(_KEY.fullmatch(key.get_secret_value()) for key in keys):
        raise OperatorError("A key must be plain ASCII without spaces; a header can't carry anything else.")


def _require_path(wire_format: WireFormat, path: str) -> None:
    segments = path.partition("?")[0].split("/")
    if not path.startswith("/") or not _VISIBLE.fullmatch(path) or "#" in path or {".", ".."} & set(segments):
        raise OperatorError(f"{path!r} can't be the path of {wire_format.value}: it begins with / and stays below it.")


def _bound_to(name: str, base_url: str) -> bytes:
    return b"\0".join((b"slp/provider-keys", name.encode(), origin_of(base_url).encode()))


def _advance_revision(session: Session) -> None:
    session.execute(
        insert_into(session, ProvidersRevisionRow)
        .values(id=1, revision=1)
        .on_conflict_do_update(index_elements=["id"], set_={"revision": ProvidersRevisionRow.revision + 1})
    )


def _changed(result: object) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
