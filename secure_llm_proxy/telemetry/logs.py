"""Log lines: text with the value last (operators `awk '{print $NF}'` it), and the same as JSON.

A line holds the constant sentence of its call and the fields given with `extra=`; of an exception it keeps the class and
the places in our code, never the message, which might quote a prompt or a secret (SECURITY A13, A16, A17).

In a worker, lines below WARNING are held back for 20 ms and written together: one exchange's line cost 40 µs in three
sinks, and costs 11 µs so (2026-11, one core). A worker that is killed loses that much of its log, never of the audit log.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TextIO

from gevent import get_hub
from gevent._hub_local import get_hub_if_exists  # get_hub() would make one in every thread that logs
from pythonjsonlogger.orjson import OrjsonFormatter

from secure_llm_proxy.settings import TelemetrySettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
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
    # (Not logging.logProcesses: gunicorn's own lines, which its workers write too, begin with the process id.)
    logging.logThreads = logging.logMultiprocessing = False
    sinks: list[_Sink] = [_StreamSink(settings.log_format, sys.stdout)]
    if to_files and settings.log_directory is not None:
        settings.log_directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        sinks.append(_FileSink("text", settings.log_directory / "app.log"))
        sinks.append(_FileSink("json", settings.log_directory / "app.jsonl"))
    lines = _LineHandler(sinks)
    if together:
        lines.hold_back()
    handlers: list[logging.Handler] = [lines]
    if to_files and settings.syslog and _SYSLOG_SOCKET.exists():
        syslog = logging.handlers.SysLogHandler(address=str(_SYSLOG_SOCKET))
        syslog.ident = "secure_llm_proxy: "
        syslog.setFormatter(_TextLines())
        handlers.append(syslog)
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


class _Sink(Protocol):
    form: Literal["text", "json"]

    def write(self, lines: str) -> None:
        """Raises `OSError`."""
        ...

    def close(self) -> None: ...


class _StreamSink:
    """Standard output, which is not ours to close."""

    def __init__(self, form: Literal["text", "json"], stream: TextIO) -> None:
        self.form: Literal["text", "json"] = form
        self._stream = stream

    def write(self, lines: str) -> None:
        self._stream.write(lines)
        self._stream.flush()

    def close(self) -> None:
        return


class _FileSink:
    """A file, opened anew when logrotate has moved it away: looked for once for all lines that are written together."""

    def __init__(self, form: Literal["text", "json"], path: Path) -> None:
        self.form: Literal["text", "json"] = form
        self._file = logging.handlers.WatchedFileHandler(path, encoding="utf-8")

    def write(self, lines: str) -> None:
        file = self._file
        file.reopenIfNeeded()
        if file.stream is None:
            # It could not be opened the last time.
            file.stream = file._open()  # noqa: SLF001  as its own emit() does
        descriptor = file.stream.fileno()
        # One call of the system, so that the lines of several workers never mix.
        content = memoryview(lines.encode("utf-8", "backslashreplace"))
        while content:
            content = content[os.write(descriptor, content) :]

    def close(self) -> None:
        self._file.close()


class _LineHandler(logging.Handler):
    """Writes lines together: after 20 ms, at 1,000 lines, or with the first that is a WARNING. Without `hold_back`, and for
    whoever logs in another thread than the event loop's, each line is written at once. A line that can't be written is
    lost, as everywhere in logging.
    """

    def __init__(self, sinks: Sequence[_Sink]) -> None:
        super().__init__()
        self._sinks = tuple(sinks)
        self._held: deque[logging.LogRecord] = deque()
        self._hub: object = None
        self._timer: Any = None

    def hold_back(self) -> None:
        """From now on, in this thread's event loop."""
        hub = get_hub()
        # A repeating one: libev fires a single shot at once when it is started for the second time.
        self._hub, self._timer = hub, hub.loop.timer(_HELD_S, _HELD_S)

    def createLock(self) -> None:  # noqa: N802  logging's own name
        """None: what is shared is a deque, and each sink writes in one call."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        if record.args:
            # They may change until it is written.
            try:
                record.msg, record.args = record.getMessage(), None
            except Exception as error:  # noqa: BLE001  arguments that do not fit their sentence
                self._complain(error)
                return
        held = self._held
        held.append(record)
        together = self._hub is not None and get_hub_if_exists() is self._hub
        if not together or record.levelno >= logging.WARNING or len(held) >= _HELD_LINES_MAX:
            self.flush()
        elif not self._timer.active:
            self._timer.start(self.flush)

    def flush(self) -> None:
        """Write what is held back. Never raises: it may be called by the event loop, or at the very end."""
        if self._timer is not None and get_hub_if_exists() is self._hub:
            self._timer.stop()
        lines: dict[str, list[str]] = {"text": [], "json": []}
        while self._held:
            try:
                record = self._held.popleft()
            except IndexError:
                # Another thread was faster.
                break
            fields = _fields_of(record)
            for form, line_of in (("text", _text_line), ("json", _json_line)):
                try:
                    lines[form].append(line_of(record, fields))
                except Exception as error:  # noqa: BLE001  a value whose __str__ raises
                    self._complain(error)
        for sink in self._sinks:
            if lines[sink.form]:
                try:
                    sink.write("\n".join(lines[sink.form]) + "\n")
                except Exception as error:  # noqa: BLE001  a full disk; the other sinks must get theirs
                    self._complain(error)

    def close(self) -> None:
        self.flush()
        for sink in self._sinks:
            sink.close()
        super().close()

    @staticmethod
    def _complain(error: Exception) -> None:
        if logging.raiseExceptions and sys.stderr:
            sys.stderr.write(f"log lines lost: {type(error).__name__}\n")


class _TextLines(logging.Formatter):
    """`time LEVEL logger sentence name=value … PROCESSING_TIME 12.345`: one line whatever the values hold."""

    def format(self, record: logging.LogRecord) -> str:
        return _text_line(record, _fields_of(record))


class _JsonLines(OrjsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return _json_line(record, _fields_of(record))


_JSON = _JsonLines()


def _text_line(record: logging.LogRecord, fields: dict[str, object]) -> str:
    told = [f"{name}={value}" for name, value in fields.items() if value is not None and name != _LAST]
    last = fields.get(_LAST)
    if record.exc_info:
        told.append("trace=" + _places_of(record.exc_info))
    if last is not None:
        told.append(f"{_LAST} {last}")
    line = " ".join([_time_of(record), record.levelname, record.name, record.getMessage(), *told])
    return line if line.isprintable() else _one_line(line)


def _json_line(record: logging.LogRecord, fields: dict[str, object]) -> str:
    head: dict[str, object] = {
        "timestamp": _time_of(record),
        "level": record.levelname,
        "logger": record.name,
        "message": record.getMessage(),
    }
    line = {**head, **fields, **head}
    if record.exc_info:
        line["trace"] = _places_of(record.exc_info)
    try:
        text = str(_JSON.jsonify_log_record(line))
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
