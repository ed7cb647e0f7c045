"""How large the database is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg2

from secure_llm_proxy.cli.host.check import Check, failed, judged, ok, unknown, warning
from secure_llm_proxy.settings.database_url import normalise_database_url

_MIB = 1 << 20
_PATIENCE_S = 5
# Below this, growth by a half means nothing.
_GROWTH_LEAST_MIB = 256
_GROWTH_SHARE = 0.5


def size_of(url: str) -> int:
    """Bytes of the database that `url` names, indexes and all. Raises `OSError` and `psycopg2.Error`."""
    url = normalise_database_url(url)
    if url.startswith("sqlite:"):
        path = Path(url.partition("///")[2])
        beside = [path.with_name(path.name + end) for end in ("-wal", "-shm")]
        return path.stat().st_size + sum(each.stat().st_size for each in beside if each.exists())
    scheme, _, rest = url.partition("://")
    with (
        contextlib.closing(
            psycopg2.connect(f"{scheme.partition('+')[0]}://{rest}", connect_timeout=_PATIENCE_S)
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_database_size(current_database())")
        found = cursor.fetchone()
        assert found is not None
        return int(found[0])


def size_check(url: str | None, before: int | None, *, warning_mib: float) -> tuple[Check, int | None]:
    """The finding, and the size to remember. `before`: the size a day ago, None: unknown."""
    what = "database size"
    if url is None:
        return unknown(what, "this user may not know DATABASE_URL", "run this as root"), None
    try:
        size = size_of(url)
    except PermissionError as error:
        return unknown(what, f"{error.filename} may not be read by this user", "run this as root"), None
    except (OSError, psycopg2.Error) as error:
        # The driver's own words may quote the URL.
        return failed(what, f"not usable ({type(error).__name__})", "manage.py doctor says why"), None
    mib = size / _MIB
    told = f"{mib:.0f} MiB" if before is None else f"{mib:.0f} MiB, {(size - before) / _MIB:+.0f} since the last look"
    fix = "see which table it is (\\dt+ in psql); secure-llm-cleanup.timer must run"
    if before is not None and mib > _GROWTH_LEAST_MIB and size > before * (1 + _GROWTH_SHARE):
        return warning(what, told, fix), size
    if not warning_mib:
        return ok(what, told), size
    return judged(what, mib, told, fix, warning_from=warning_mib, failed_from=float("inf")), size
