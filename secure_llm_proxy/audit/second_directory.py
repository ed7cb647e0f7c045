"""The second directory of a log (AUDIT_FALLBACK_DIR): where a segment is opened when the first directory cannot take it.

Both directories of a log bear a mark, so that a start notices when one of them is away, as a disk that is not mounted
is: whoever went on without it would give numbers out twice, and fork the log.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from secure_llm_proxy.audit.durable_files import write_durably
from secure_llm_proxy.audit.genesis import Genesis
from secure_llm_proxy.audit.segments import (
    GENESIS_NAME,
    SECOND_NAME,
    LogDirectories,
    second_mark,
    second_of,
    segments_in,
)
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.regular_files import read_file
from secure_llm_proxy.settings import AuditSettings


def refuse_a_vanished_log(settings: AuditSettings, host: Path) -> None:
    """Raises `OperatorError` when `host` holds no log. One that has begun is told from one that never did by its second directory."""
    if (host / GENESIS_NAME).is_file():
        return
    second = settings.fallback_directory and settings.fallback_directory / host.name
    if second and ((second / SECOND_NAME).exists() or (second.is_dir() and segments_in(second))):
        raise OperatorError(
            f"{host} holds no {GENESIS_NAME}, although the log goes on in its second directory {second}: the first one "
            "is gone or not mounted. Bring it back; do not begin another log."
        )
    raise OperatorError(f"{host} holds no audit log yet; `manage.py audit init` begins one.")


def open_directories(settings: AuditSettings, genesis: Genesis, report: Callable[..., None]) -> LogDirectories:
    """Both directories of the log, the second made at its first use. Raises `OperatorError` when one of them is away."""
    first, fallback = genesis.directory, settings.fallback_directory
    marked = (first / SECOND_NAME).exists()
    if fallback is None:
        if marked:
            raise OperatorError(
                f"The log in {first} has a second directory, and AUDIT_FALLBACK_DIR names none. Name it; or, to give it "
                f"up, move the segments from there into {first} and delete {first / SECOND_NAME}."
            )
        return LogDirectories(first)
    second = fallback / first.name
    if _is_within(second, settings.directory) or _is_within(first, fallback):
        raise OperatorError("AUDIT_FALLBACK_DIR and AUDIT_DIR must be two directories, neither inside the other.")
    mark = second_mark(genesis.log)
    try:
        found = read_file(second / SECOND_NAME)
    except FileNotFoundError:
        if marked:
            raise OperatorError(
                f"{second} is not the second directory of the log in {first}: it holds no {SECOND_NAME}. Is its disk "
                "mounted? Going on without it could give numbers of segments out twice."
            ) from None
        _begin(second, mark)
    except OSError as error:
        raise OperatorError(f"AUDIT_FALLBACK_DIR cannot be read: {error.strerror} ({error.filename}).") from None
    else:
        if found != mark:
            raise OperatorError(f"{second} is the second directory of another log than {genesis.log}.")
    if not marked or second_of(first) != second:
        try:
            write_durably(first / SECOND_NAME, second_mark(genesis.log, second), 0o640)
        except OSError as error:
            # Just the day for which the second directory was made.
            report("mark_failed", directory=str(first), error=error.strerror or str(error))
    return LogDirectories(first, second)


def _begin(second: Path, mark: bytes) -> None:
    try:
        for directory in (second.parent, second):
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        write_durably(second / SECOND_NAME, mark, 0o640)
    except OSError as error:
        raise OperatorError(f"AUDIT_FALLBACK_DIR cannot be used: {error.strerror} ({error.filename}).") from None


def _is_within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())
