"""INSERT … ON CONFLICT, which both databases know and SQLAlchemy spells for each of them apart."""

from __future__ import annotations

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.database import Model


def insert_into(session: Session, table: type[Model]) -> postgresql.Insert | sqlite.Insert:
    """An insert that may say what a conflict does."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
