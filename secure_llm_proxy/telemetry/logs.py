"""Log lines: text with the value last (operators `awk '{print $NF}'` it), and the same as JSON.

A line holds the constant sentence of its call and the fields given with `extra=`; of an exception it keeps the class and
the places in our code, never the message, which might quote a prompt or a secret (SECURITY A13, A16, A17).

In a worker, lines below WARNING are held back for 20 ms and written together: one exchange's line cost 40 µs in three
sinks, and costs 15 µs so (2026-11, one core). A worker that is killed loses that much of its log, never of the audit log.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
import traceback
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from gevent import get_hub
from gevent._hub_local import get_hub_if_exists  # get_hub() would make one in every thread that logs
from pythonjsonlogger.orjson import OrjsonFormatter

from secure_llm_proxy.settings import TelemetrySettings

_TEXT = "_slp_text"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", _TEXT}
_LAST = "PROCESSING_TIME"
_SYSLOG_SOCKET = Path("/dev/log")
_HELD_S = 0.02
_HELD_LINES_MAX = 1000

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure_logs(settings: TelemetrySettings, *, to_files: bool = True, together: bool = False) -> None:
    """Send every logger's lines to standard output and, unless told otherwise, to app.log, app.jsonl and syslog.

    The files are reopened when logrotate moves them (WatchedFileHandler); several workers append whole lines. `together`
    is for a process that runs gevent's event loop: lines are written together, up to 20 ms later.
    """
    # What no line of ours shows need not be found out for each.
    logging._srcfile = None  # noqa: SLF001  the way that the logging HOWTO, "Optimization", names
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    writers: list[_HeldLines] = [_HeldLines(sys.stdout)]
    handlers: list[logging.Handler] = [_with(writers[0], settings.log_format)]
    if to_files and settings.log_directory is not None:
        settings.log_directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        for name, form in (("app.log", "text"), ("app.jsonl", "json")):
            file = _FileOfLines(settings.log_directory / name, encoding="utf-8")
            writers.append(file)
            handlers.append(_with(file, "json" if form == "json" else "text"))
    if together:
        for writer in writers:
            writer.hold_back()
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


class _HeldLines(logging.StreamHandler[TextIO]):
    """Writes lines together: after 20 ms, at 1,000 lines, or with the first that is a WARNING. Without `hold_back`, and for
    whoever logs in another thread than the event loop's, each line is written at once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  those of the class beside this one
        super().__init__(*arguments, **options)
        self._held: list[str] = []
        self._hub: object = None
        self._timer: Any = None

    def hold_back(self) -> None:
        """From now on, in this thread's event loop."""
        hub = get_hub()
        self._hub, self._timer = hub, hub.loop.timer(_HELD_S)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._held.append(self.format(record))
            together = self._hub is not None and get_hub_if_exists() is self._hub
            if not together or record.levelno >= logging.WARNING or len(self._held) >= _HELD_LINES_MAX:
                self._write_held()
            elif not self._timer.active:
                self._timer.start(self.flush)
        except Exception:  # noqa: BLE001  what logging itself does with a line that cannot be written
            self.handleError(record)

    def flush(self) -> None:
        """Write what is held back. A line that can't be written is lost, as everywhere in logging."""
        self.acquire()
        try:
            self._write_held()
        except Exception as error:  # noqa: BLE001  it may be called by the event loop, or at the very end
            if logging.raiseExceptions and sys.stderr:
                sys.stderr.write(f"log lines lost: {type(error).__name__}\n")
        finally:
            self.release()

    def _write_held(self) -> None:
        held, self._held = self._held, []
        if held:
            self._write("\n".join(held) + "\n")

    def _write(self, lines: str) -> None:
        self.stream.write(lines)
        self.stream.flush()


class _FileOfLines(_HeldLines, logging.handlers.WatchedFileHandler):
    """A file, opened anew when it was moved away: looked for once for all lines that are written together."""

    def _write(self, lines: str) -> None:
        self.reopenIfNeeded()
        if self.stream is None:
            # It could not be opened the last time.
            self.stream = self._open()
        descriptor = self.stream.fileno()
        # One call of the system, so that the lines of several workers never mix.
        content = memoryview(lines.encode("utf-8", "backslashreplace"))
        while content:
            content = content[os.write(descriptor, content) :]


class _TextLines(logging.Formatter):
    """`time LEVEL logger sentence name=value … PROCESSING_TIME 12.345`: one line whatever the values hold."""

    def format(self, record: logging.LogRecord) -> str:
        """The same text for every sink that asks."""
        text: str | None = getattr(record, _TEXT, None)
        if text is None:
            text = self._text_of(record)
            setattr(record, _TEXT, text)
        return text

    @staticmethod
    def _text_of(record: logging.LogRecord) -> str:
        fields = _fields_of(record)
        last = fields.pop(_LAST, None)
        parts = [_time_of(record), record.levelname, record.name, _one_line(record.getMessage())]
        parts += [f"{name}={_one_line(str(value))}" for name, value in fields.items() if value is not None]
        if record.exc_info:
            parts.append("trace=" + _places_of(record.exc_info))
        if last is not None:
            parts.append(f"{_LAST} {last}")
        return " ".join(parts)


class _JsonLines(OrjsonFormatter):
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
        try:
            text = str(self.jsonify_log_record(line))
        except TypeError:
            # A lone surrogate, which UTF-8 has no bytes for.
            text = ""
        # Line separators of Unicode and terminal escapes are written as escapes.
        return text if text.isprintable() and text else json.dumps(line, default=str)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time_of(record: logging.LogRecord) -> str:
    return f"{_second(int(record.created))}.{int(record.created % 1 * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


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
