"""Tables of the routing room, private to it. Rows never leave: the room gives frozen values (`stored_providers.py`)."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, CheckConstraint, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from secure_llm_proxy.foundation.database import Model, PrimaryKey, Timestamp


class ProviderRow(Model):
    """A provider that an operator configured by command."""

    __tablename__ = "providers"
    __table_args__ = (
        CheckConstraint("needs_key OR sealed_keys IS NULL", name="sealed_keys"),
        CheckConstraint("version > 0", name="version"),
        UniqueConstraint("name"),
    )

    id: Mapped[PrimaryKey]
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(40))
    base_url: Mapped[str] = mapped_column(String(500))
    query: Mapped[str] = mapped_column(String(200))
    needs_key: Mapped[bool] = mapped_column(comment="it is not asked while it needs a key and has none")
    sealed_keys: Mapped[bytes | None] = mapped_column(
        LargeBinary, comment="AES-256-GCM, bound to name and origin; null: none, or erased with a change of the URL"
    )
    models: Mapped[list[str]] = mapped_column(JSON, comment="on offer; empty: its own list")
    tags: Mapped[dict[str, str]] = mapped_column(JSON)
    patience: Mapped[dict[str, float]] = mapped_column(
        JSON, comment="seconds; what is absent is as the settings have it"
    )
    formats: Mapped[dict[str, str] | None] = mapped_column(
        JSON(none_as_null=True), comment="paths by wire format; null: those of its kind"
    )
    usage_in_streams: Mapped[bool]
    created_by: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[Timestamp]
    changed_at: Mapped[Timestamp]
    version: Mapped[int] = mapped_column(comment="advances with every change of the row")


class ProvidersRevisionRow(Model):
    """The one row by which a worker sees that providers changed; there is none before the first change."""

    __tablename__ = "providers_revision"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger, comment="advances in every transaction that changes providers")
