"""Log lines: text with the value last (operators `awk '{print $NF}'` it), and the same as JSON.

A line holds the constant sentence of its call and the fields given with `extra=`; of an exception it keeps the class and
the places in our code, never the message, which might quote a prompt or a secret (SECURITY A13, A16, A17).
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

from secure_llm_proxy.settings import TelemetrySettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LAST = "PROCESSING_TIME"
_SYSLOG_SOCKET = Path("/dev/log")

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure_logs(settings: TelemetrySettings, *, to_files: bool = True) -> None:
    """Send every logger's lines to standard output and, unless told otherwise, to app.log, app.jsonl and syslog.

    The files are reopened when logrotate moves them (WatchedFileHandler); several workers append whole lines.
    """
    handlers: list[logging.Handler] = [_with(logging.StreamHandler(sys.stdout), settings.log_format)]
    if to_files and settings.log_directory is not None:
        settings.log_directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for name, form in (("app.log", "text"), ("app.jsonl", "json")):
            file = logging.handlers.WatchedFileHandler(settings.log_directory / name, encoding="utf-8")
            handlers.append(_with(file, "json" if form == "json" else "text"))
    if to_files and settings.syslog and _SYSLOG_SOCKET.exists():
        syslog = logging.handlers.SysLogHandler(address=str(_SYSLOG_SOCKET))
        syslog.ident = "secure_llm_proxy: "
        handlers.append(_with(syslog, "text"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.setLevel(settings.log_level)
    for handler in handlers:
        root.addHandler(handler)
    # Libraries speak of hosts and addresses at INFO and below.
    for noisy in ("urllib3", "sqlalchemy", "alembic", "redis", "sentry_sdk"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _with(handler: logging.Handler, form: Literal["text", "json"]) -> logging.Handler:
    handler.setFormatter(_JsonLines() if form == "json" else _TextLines())
    return handler


class _TextLines(logging.Formatter):
    """`time LEVEL logger sentence name=value … PROCESSING_TIME 12.345`: one line whatever the values hold."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields_of(record)
        last = fields.pop(_LAST, None)
        parts = [_time_of(record), record.levelname, record.name, _one_line(record.getMessage())]
        parts += [f"{name}={_one_line(str(value))}" for name, value in fields.items() if value is not None]
        if record.exc_info:
            parts.append("trace=" + _places_of(record.exc_info))
        if last is not None:
            parts.append(f"{_LAST} {last}")
        return " ".join(parts)


class _JsonLines(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in _fields_of(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["trace"] = _places_of(record.exc_info)
        return str(self.jsonify_log_record(line))


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _one_line(text: str) -> str:
    """Control characters, line separators and terminal escapes are written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _places_of(exc_info: _ExcInfo) -> str:
    kind, _error, trace = exc_info
    if kind is None:
        return ""
    places = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in reversed(traceback.extract_tb(trace))
    )
    return f"{kind.__name__} at {places}"
