"""Is the schema plainly this release's? One query and one look at the migrations, without SQLAlchemy and Alembic.

`manage.py serve` asks here first: 0.02 s instead of 0.3 s (2026-11-21). Only a sure yes counts; every doubt is left to
`database_schema.py`, which has the sentences for what is wrong.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from secure_llm_proxy.settings import DatabaseSettings

_VERSIONS = Path(__file__).resolve().parents[2] / "migrations" / "versions"
_REVISION = re.compile(r'^revision(?:: str)? = "([^"]+)"$', re.MULTILINE)
_REVISES = re.compile(r'^down_revision(?:: str \| None)? = (?:"([^"]+)"|None)$', re.MULTILINE)
_CURRENT = "SELECT version_num FROM alembic_version"
# Whatever libpq and SQLAlchemy might read differently (`@` or `?` in a password) is a doubt.
_PLAIN_URL = re.compile(r"postgresql\+psycopg2://([\w.~%-]+(:[\w.~%-]*)?@)?[\w.:-]*(/[\w.~%-]*)?(\?[\w.~%=&/+-]*)?")


def is_surely_current(settings: DatabaseSettings) -> bool:
    """True when the database answers and its one revision is the newest; False means nothing. Changes nothing."""
    url = settings.url.get_secret_value()
    newest = newest_revision(_VERSIONS)
    if newest is None:
        return False
    if url.startswith("sqlite:///"):
        return _revisions_of_sqlite(url.removeprefix("sqlite:///")) == [newest]
    if _PLAIN_URL.fullmatch(url):
        return _revisions_of_postgresql(url) == [newest]
    return False


def newest_revision(versions: Path) -> str | None:
    """The one revision that no other builds on; None when the files in `versions` don't plainly tell."""
    made: set[str] = set()
    built_on: set[str] = set()
    for file in versions.glob("*.py"):
        text = file.read_text("utf-8")
        revision, revises = _REVISION.search(text), _REVISES.search(text)
        if revision is None or revises is None:
            return None
        made.add(revision[1])
        if revises[1] is not None:
            built_on.add(revises[1])
    newest = made - built_on
    return newest.pop() if len(newest) == 1 and built_on <= made else None


def _revisions_of_sqlite(path: str) -> list[str] | None:
    if "?" in path or not Path(path).is_file():
        return None
    try:
        # rw: a read-only connection may leave the write-ahead log's files behind.
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=1)) as connection:
            return [str(revision) for (revision,) in connection.execute(_CURRENT)]
    except sqlite3.Error:
        return None


def _revisions_of_postgresql(url: str) -> list[str] | None:
    import psycopg2  # noqa: PLC0415  an embedded installation has no use for it

    try:
        with closing(psycopg2.connect(url.replace("+psycopg2", "", 1), connect_timeout=5)) as connection:
            cursor = connection.cursor()
            cursor.execute(_CURRENT)
            return [str(revision) for (revision,) in cursor.fetchall()]
    except psycopg2.Error:
        return None
