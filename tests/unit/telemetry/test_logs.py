"""One event is one line, whatever the values hold, and no line holds what an exception said."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import gevent
import pytest
from gunicorn.glogging import Logger as GunicornLogger
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from secure_llm_proxy.settings import TelemetrySettings
from secure_llm_proxy.telemetry import configure_logs
from secure_llm_proxy.telemetry.logs import _JsonLines, _LineHandler, _TextLines

CANARY = "canary-prompt-5c1e my card is 4111 1111 1111 1111"
HOSTILE = [
    "a\nb", "a\r\nb", "a\x0bb", "a\x0cb", "a\x1cb\x1d\x1e", "a\x85b", "a\u2028b", "a\u2029b", "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07", "\x00", "\x7f", "\x9b31m", "\u202egnp.exe", "\u200b\u2066", "\ud800", "\U000e0041", "tab\there",
    "2026-11-21T00:00:00.000Z INFO secure_llm_proxy forged\n2026-11-21T00:00:00.000Z ERROR x y PROCESSING_TIME 1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """configure_logs() owns the root logger of a process; here it has to be given back."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    noisy = {
        name: logging.getLogger(name).level for name in ("urllib3", "sqlalchemy", "alembic", "redis", "sentry_sdk")
    }
    for handler in before:
        root.removeHandler(handler)
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)
    for name, old in noisy.items():
        logging.getLogger(name).setLevel(old)


def record_of(sentence: str, *, error: BaseException | None = None, **extra: object) -> logging.LogRecord:
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("slp.tests", logging.INFO, __file__, 1, sentence, (), exc_info)
    for name, value in extra.items():
        setattr(record, name, value)
    return record


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


def separators(text: str) -> list[str]:
    """Everything at which some reader of logs starts a new line, or a terminal obeys."""
    return [c for c in text if not c.isprintable()]


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_text_line_ends_with_the_processing_time() -> None:
    line = _TextLines().format(record_of("CHAT_REQUEST", request_id="exc_1", PROCESSING_TIME=12.345, status=200))

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO slp\.tests CHAT_REQUEST request_id=exc_1 status=200"
        r" PROCESSING_TIME 12\.345",
        line,
    )
    assert float(line.split()[-1]) == 12.345


def test_the_processing_time_stays_last_beside_an_exception() -> None:
    line = _TextLines().format(record_of("failed", error=raised(KeyError(CANARY)), PROCESSING_TIME=0.5, detail="x"))

    assert line.endswith(" PROCESSING_TIME 0.5")


def test_fields_that_say_nothing_are_left_out() -> None:
    assert "model" not in _TextLines().format(record_of("x", model=None))


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_hostile_value_stays_on_its_line_as_text_and_as_json(value: str) -> None:
    record = record_of("sentence", agent=value, PROCESSING_TIME=1.0)

    text, json_line = _TextLines().format(record), _JsonLines().format(record)

    assert separators(text) == []
    assert separators(json_line) == []
    assert text.count("slp.tests") == 1
    assert json.loads(json_line)["agent"] == value


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_hostile_sentence_of_a_library_stays_on_its_line(value: str) -> None:
    record = logging.LogRecord("lib", logging.WARNING, __file__, 1, "said %s", (value,), None)

    assert separators(_TextLines().format(record)) == []
    assert separators(_JsonLines().format(record)) == []


@pytest.mark.parametrize("form", [_TextLines, _JsonLines])
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{3,8}_[a-z]{1,8}", fullmatch=True), st.text() | st.integers() | st.none(), max_size=5
    )
)
def test_any_values_at_all_make_one_line(form: type[logging.Formatter], fields: dict[str, object]) -> None:
    record = record_of("sentence")
    vars(record).update(fields)

    line = form().format(record)

    assert separators(line) == []
    assert line.encode("utf-8")


# --- exceptions -------------------------------------------------------------------------------------------------------


class QuotesThePrompt(Exception):
    def __str__(self) -> str:
        return CANARY

    def __repr__(self) -> str:
        return CANARY


def _deep(levels: int) -> None:
    if levels:
        _deep(levels - 1)
    local = CANARY
    raise QuotesThePrompt(local)


@pytest.mark.parametrize("form", [_TextLines, _JsonLines])
@pytest.mark.parametrize("depth", [0, 3])
def test_an_exception_tells_its_class_and_places_and_not_a_word_of_its_message(
    form: type[logging.Formatter], depth: int
) -> None:
    try:
        try:
            raise ValueError(CANARY)  # noqa: TRY301  a chain is the point
        except ValueError as cause:
            try:
                _deep(depth)
            except QuotesThePrompt as error:
                error.add_note(CANARY)
                raise error from cause
    except QuotesThePrompt as error:
        line = form().format(record_of("failed", error=error))

    assert "canary" not in line
    assert "4111" not in line
    assert "QuotesThePrompt at " in line
    assert "test_logs.py:" in line
    assert ":_deep" in line
    assert separators(line) == []


@pytest.mark.parametrize("form", [_TextLines, _JsonLines])
def test_an_exception_without_a_trace_is_a_line_too(form: type[logging.Formatter]) -> None:
    assert "KeyError at " in form().format(record_of("failed", error=KeyError(CANARY)))
    nothing = record_of("failed")
    nothing.exc_info = (None, None, None)
    assert "canary" not in form().format(nothing)


def test_logging_with_exc_info_through_the_logger_keeps_the_promise() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(_TextLines())
    logger = logging.getLogger("slp.tests.exc")
    logger.addHandler(handler)
    try:
        raise RuntimeError(CANARY)  # noqa: TRY301  caught at once on purpose
    except RuntimeError:
        logger.exception("it failed", stack_info=True)
    finally:
        logger.removeHandler(handler)

    assert "canary" not in written.getvalue()
    assert len(written.getvalue().splitlines()) == 1


# --- json -------------------------------------------------------------------------------------------------------------


def test_a_json_line_holds_what_the_text_line_holds() -> None:
    error = raised(KeyError(CANARY))

    line = json.loads(_JsonLines().format(record_of("CHAT_REQUEST", error=error, status=200, PROCESSING_TIME=1.5)))

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line.pop("trace").startswith("KeyError at test_logs.py:")
    assert line == {
        "level": "INFO", "logger": "slp.tests", "message": "CHAT_REQUEST", "status": 200, "PROCESSING_TIME": 1.5,
    }  # fmt: skip


def test_a_field_cannot_take_the_place_of_a_fixed_one() -> None:
    line = json.loads(_JsonLines().format(record_of("real", level="FORGED", logger="FORGED", timestamp="FORGED")))

    assert (line["level"], line["logger"], line["message"]) == ("INFO", "slp.tests", "real")
    assert line["timestamp"] != "FORGED"


# --- files ------------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    # split at LF only, as grep and awk do
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def test_both_files_are_written_and_not_readable_by_everybody(tmp_path: Path) -> None:
    configure_logs(TelemetrySettings(log_directory=tmp_path / "log"))

    logging.getLogger("slp.tests").info("CHAT_REQUEST", extra={"PROCESSING_TIME": 3.25})

    (text,) = lines_of(tmp_path / "log" / "app.log")
    (json_line,) = lines_of(tmp_path / "log" / "app.jsonl")
    assert text.split()[-1] == "3.25"
    assert json.loads(json_line)["PROCESSING_TIME"] == 3.25
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_logrotate_may_move_the_files_away(tmp_path: Path) -> None:
    configure_logs(TelemetrySettings(log_directory=tmp_path))
    log = logging.getLogger("slp.tests")

    log.info("before")
    for name in ("app.log", "app.jsonl"):
        (tmp_path / name).rename(tmp_path / f"{name}.1")
    log.info("after")
    log.info("later")

    for name in ("app.log", "app.jsonl"):
        assert len(lines_of(tmp_path / f"{name}.1")) == 1
        assert len(lines_of(tmp_path / name)) == 2
        assert "before" in lines_of(tmp_path / f"{name}.1")[0]


def test_a_second_configuration_replaces_the_first(tmp_path: Path) -> None:
    configure_logs(TelemetrySettings(log_directory=tmp_path / "one"))
    configure_logs(TelemetrySettings(log_directory=tmp_path / "two"))

    logging.getLogger("slp.tests").info("once")

    assert lines_of(tmp_path / "one" / "app.log") == []
    assert len(lines_of(tmp_path / "two" / "app.log")) == 1


def test_without_a_directory_lines_go_to_standard_output_in_the_form_wished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(TelemetrySettings(log_directory=None, log_format="json"))
    logging.getLogger("slp.tests").warning("told", extra={"detail": "x\ny"})
    sys.stdout.flush()

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["detail"] == "x\ny"
    assert list(tmp_path.iterdir()) == []


def test_the_level_is_kept_and_chatty_libraries_are_quiet(tmp_path: Path) -> None:
    configure_logs(TelemetrySettings(log_directory=tmp_path, log_level="INFO"))

    logging.getLogger("slp.tests").debug("too low")
    logging.getLogger("urllib3.connectionpool").info("Starting new HTTPS connection (1): llm.internal:443")
    logging.getLogger("sqlalchemy.engine").info("SELECT secret")
    logging.getLogger("slp.tests").info("told")

    assert len(lines_of(tmp_path / "app.log")) == 1


@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.text(max_size=40) | st.sampled_from(HOSTILE), min_size=1, max_size=20))
def test_there_are_as_many_lines_as_events(tmp_path: Path, values: list[str]) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    configure_logs(TelemetrySettings(log_directory=folder))

    for value in values:
        logging.getLogger("slp.tests").info("event %s", value, extra={"agent": value, "PROCESSING_TIME": 1})

    for name in ("app.log", "app.jsonl"):
        assert len((folder / name).read_text(encoding="utf-8").splitlines()) == len(values)
    assert [json.loads(line)["agent"] for line in lines_of(folder / "app.jsonl")] == values


# --- lines that are written together ----------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """Logs as a worker has them, in a folder of their own."""
    configure_logs(TelemetrySettings(log_directory=tmp_path), together=True)
    yield tmp_path
    for handler in logging.getLogger().handlers:
        handler.close()


def lines_in(folder: Path, name: str = "app.log") -> list[str]:
    return [line.split(" ", 3)[3] for line in (folder / name).read_text("utf-8").splitlines()]


def test_a_worker_writes_lines_together_and_soon(held: Path) -> None:
    log = logging.getLogger("slp.tests")

    for number in range(5):
        log.info("line %d", number)
    at_once = lines_in(held)
    gevent.sleep(0.5)

    assert at_once == []
    assert lines_in(held) == [f"line {number}" for number in range(5)]
    assert len((held / "app.jsonl").read_text("utf-8").splitlines()) == 5
    log.info("and again")
    gevent.sleep(0.5)
    assert lines_in(held)[-1] == "and again"


def test_lines_stay_together_for_as_long_as_the_worker_lives() -> None:
    writes: list[str] = []

    class CountedSink:
        form: Literal["text", "json"] = "text"

        def write(self, lines: str) -> None:
            writes.append(lines)

        def close(self) -> None:
            return

    handler = _LineHandler([CountedSink()])
    handler.hold_back()
    began_s = time.monotonic()

    for _ in range(200):
        handler.handle(record_of("x"))
        gevent.sleep(0.001)
    handler.close()

    # One write each 20 ms at most; half of that, because a late one brings the next one nearer.
    assert len(writes) <= (time.monotonic() - began_s) / 0.01 + 2
    assert sum(lines.count("\n") for lines in writes) == 200


def test_a_warning_is_written_at_once_behind_what_came_before(held: Path) -> None:
    log = logging.getLogger("slp.tests")

    log.info("first")
    log.warning("second")

    assert lines_in(held) == ["first", "second"]


def test_what_is_held_back_is_bounded_and_written_at_the_end(held: Path) -> None:
    log = logging.getLogger("slp.tests")

    for number in range(2500):
        log.info("line %d", number)
    at_once = len(lines_in(held))
    logging.shutdown()

    assert at_once == 2000
    assert len(lines_in(held)) == 2500


def test_another_threads_lines_wait_for_nobody(held: Path) -> None:
    thread = threading.Thread(target=logging.getLogger("slp.tests").info, args=("from a thread",))

    thread.start()
    thread.join()

    assert lines_in(held) == ["from a thread"]


def test_after_logrotate_lines_go_to_the_new_file(held: Path) -> None:
    log = logging.getLogger("slp.tests")
    log.warning("old")

    (held / "app.log").rename(held / "app.log.1")
    log.info("new")
    gevent.sleep(0.5)

    assert lines_in(held, "app.log.1") == ["old"]
    assert lines_in(held) == ["new"]


def test_gunicorns_own_lines_keep_their_process_id(tmp_path: Path) -> None:
    form = GunicornLogger.error_fmt

    configure_logs(TelemetrySettings(log_directory=tmp_path), to_files=False)
    record = logging.getLogger("gunicorn.error").makeRecord(
        "gunicorn.error", logging.INFO, "", 0, "Worker exiting", (), None
    )

    assert f"[{os.getpid()}] [INFO] Worker exiting" in logging.Formatter(form).format(record)
