"""Tables of the admission room, private to it. Rows never leave: the room gives frozen values (`address_rules.py`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from secure_llm_proxy.foundation.database import Model, PrimaryKey, Timestamp


class AddressRuleRow(Model):
    """A network that may not ask, or one that may."""

    __tablename__ = "address_rules"
    __table_args__ = (
        CheckConstraint("list IN ('blocked', 'allowed')", name="list"),
        CheckConstraint("source IN ('operator', 'violations')", name="source"),
        CheckConstraint("version > 0", name="version"),
        UniqueConstraint("list", "network"),
    )

    id: Mapped[PrimaryKey]
    list: Mapped[str] = mapped_column(String(16))
    network: Mapped[str] = mapped_column(String(43), comment="CIDR in its canonical form, v4-mapped as v4")
    note: Mapped[str] = mapped_column(String(200))
    source: Mapped[str] = mapped_column(String(16))
    created_by: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[Timestamp]
    expires_at: Mapped[Timestamp | None] = mapped_column(index=True, comment="ignored from then on; null: never")
    version: Mapped[int] = mapped_column(comment="advances with every change of the row")


class AddressRulesRevisionRow(Model):
    """The one row by which a worker sees that rules changed; there is none before the first change."""

    __tablename__ = "address_rules_revision"
    __table_args__ = (CheckConstraint("id = 1", name="single"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger, comment="advances in every transaction that changes rules")
