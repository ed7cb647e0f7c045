"""Tables of the audit room: a searchable copy of what the log says in clear, and the checkpoints as anchors.

The log is the evidence; the index is a cache of it that `manage.py audit reindex` makes anew from the segments. Columns are
named as the members of a record are (docs/audit-format.md). Anchors may only be added (`anchor_triggers.py`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnClause,
    Index,
    Integer,
    LargeBinary,
    String,
    column,
)
from sqlalchemy.orm import Mapped, mapped_column

from secure_llm_proxy.audit.anchor_triggers import install_with_tables
from secure_llm_proxy.foundation.database import Model, Timestamp


def _searched(name: str) -> Index:
    """For a search by this column, newest first; rows without it take no room."""
    has_it: ColumnClause[str] = column(name)
    return Index(
        f"ix_audit_index_{name}", name, "t", postgresql_where=has_it.is_not(None), sqlite_where=has_it.is_not(None)
    )


class AuditIndexRow(Model):
    """One record. What a record does not say is null; a value that does not fit its column stands in `rest`."""

    __tablename__ = "audit_index"
    __table_args__ = (
        Index("ix_audit_index_ty", "ty", "t"),
        *map(_searched, ("usr", "sub", "ak", "prj", "sbj", "mdl", "ev", "dec", "ipx", "uax", "emx")),
    )

    log: Mapped[str] = mapped_column(String(140), primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, comment="place in the log")
    seg: Mapped[int] = mapped_column(BigInteger, comment="number of the segment")
    offset: Mapped[int] = mapped_column("off", BigInteger, comment="first byte of the line in its segment")
    length: Mapped[int] = mapped_column("len", Integer, comment="bytes of the line, without its newline")
    t: Mapped[Timestamp] = mapped_column(index=True)
    ty: Mapped[str] = mapped_column(String(41), comment="type: llm.start, admin.intent …")
    ev: Mapped[str | None] = mapped_column(String(64), comment="the operators' event name")
    id: Mapped[str] = mapped_column(String(64), index=True)
    rid: Mapped[str] = mapped_column(String(64), index=True, comment="the request, or the change, that it is part of")
    usr: Mapped[str | None] = mapped_column(String(64), comment="whose request it was: `usr`, else the user in `by`")
    sub: Mapped[str | None] = mapped_column(String(64), comment="pseudonym of the person that an application named")
    ak: Mapped[str | None] = mapped_column(String(64), comment="public part of the API key, or id of the session")
    prj: Mapped[str | None] = mapped_column(String(64), comment="the key's project")
    sbj: Mapped[str | None] = mapped_column(String(128), comment="who was acted on: `user`, else `subject`")
    mdl: Mapped[str | None] = mapped_column(String(200), comment="model")
    up: Mapped[str | None] = mapped_column(String(64), comment="provider")
    dec: Mapped[str | None] = mapped_column(String(16), comment="decision: allow, refuse")
    code: Mapped[str | None] = mapped_column(String(64), comment="error code that the client was told")
    st: Mapped[str | None] = mapped_column(String(32), comment="how an exchange ended")
    http: Mapped[int | None] = mapped_column(Integer, comment="status of the answer")
    tin: Mapped[int | None] = mapped_column(BigInteger, comment="tokens of the prompt")
    tout: Mapped[int | None] = mapped_column(BigInteger, comment="tokens of the answer")
    ms: Mapped[int | None] = mapped_column(BigInteger, comment="how long it took, milliseconds")
    rt: Mapped[str | None] = mapped_column(String(128), comment="door")
    ipx: Mapped[str | None] = mapped_column(String(32), comment="blind index of the address")
    uax: Mapped[str | None] = mapped_column(String(32), comment="blind index of the user agent")
    emx: Mapped[str | None] = mapped_column(String(32), comment="blind index of the e-mail address")
    by: Mapped[str | None] = mapped_column(String(128), comment="who changed something: user:usr_…, host:root")
    act: Mapped[str | None] = mapped_column(String(64), comment="what was changed")
    h: Mapped[bytes] = mapped_column(LargeBinary(32), comment="leaf hash of the line")
    rest: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), comment="other clear members")


class AuditAnchorRow(Model):
    """A checkpoint of a log, kept where the writer of the log cannot take it back."""

    __tablename__ = "audit_anchors"

    log: Mapped[str] = mapped_column(String(140), primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False, comment="lines that it covers")
    root: Mapped[str] = mapped_column(String(44), comment="root of the tree, base64")
    note: Mapped[str] = mapped_column(String(1024), comment="the signed note (C2SP)")
    t: Mapped[Timestamp] = mapped_column(comment="when it was signed")
    first_seen: Mapped[Timestamp] = mapped_column(comment="when it was put here")


class AuditIndexStateRow(Model):
    """How far the index of one log has come, and who is at it."""

    __tablename__ = "audit_index_state"
    __table_args__ = (CheckConstraint("next_n >= 0", name="next_n"),)

    log: Mapped[str] = mapped_column(String(140), primary_key=True)
    next_n: Mapped[int] = mapped_column(BigInteger, comment="first line of the log that is not looked at yet")
    lease_holder: Mapped[str | None] = mapped_column(String(64), comment="the one who may add rows")
    lease_until: Mapped[Timestamp | None] = mapped_column(comment="from then on somebody else may")
    rebuilt_n: Mapped[int | None] = mapped_column(
        BigInteger, comment="first line that a rebuilding under way has not come to; null: none is"
    )
    trouble: Mapped[str | None] = mapped_column(String(300), comment="what an operator must look into; null: nothing")


install_with_tables(Model.metadata)
