"""Runs the collected tests in several processes at the same time: `pytest -p tests.support.side_by_side --processes 3`.

Tests are collected once, then this process forks. Each child takes one stretch after the other, a stretch being tests of one
file that follow each other, and has fixtures of its own: the servers of a session are started by each child that needs them.
This process runs no test; it tells what a stretch came to when it is over, in one piece.

pytest-xdist would collect in every process (22 s of CPU for 14,000 tests), and can't be told what to run where: here the
journeys, which share three running products, stay with one child as long as the others have something else to do.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import selectors
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest

# What each child takes first, in turn, and everybody afterwards. The rest are unit tests: short, they even out the end.
_KINDS = ("tests/journeys/", "tests/rooms/", "tests/contract/")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tests of one file that follow each other in the order of the run."""

    file: str
    start: int
    stop: int


@dataclass(slots=True)
class _Child:
    """A process that runs tests, as the one that started it knows it."""

    pid: int
    line: socket.socket
    prefers: str
    heard: bytes = b""
    reports: list[Mapping[str, object]] = field(default_factory=list)
    runs: str = "no test"
    is_done: bool = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=1, help="how many processes run the tests")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    processes = session.config.getoption("processes")
    if processes <= 1 or session.config.option.collectonly or session.testsfailed or not session.items:
        return None
    # Made before anybody asks for a temporary folder, so that all are in one place, which this process clears away.
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    # What there is now stays until the end: the children's garbage collections need not walk over it, nor copy its pages.
    gc.collect()
    gc.freeze()
    _Run(session, processes).run()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


def stretches_of(items: list[pytest.Item]) -> list[Stretch]:
    found = []
    start = 0
    for file, tests in itertools.groupby(items, key=lambda item: item.nodeid.partition("::")[0]):
        stop = start + len(list(tests))
        found.append(Stretch(file, start, stop))
        start = stop
    return found


class _Run:
    """In the process that was started: gives out the work, and tells what comes of it."""

    def __init__(self, session: pytest.Session, processes: int) -> None:
        self._session = session
        self._processes = processes
        self._stretches = stretches_of(session.items)
        self._waiting = list(range(len(self._stretches)))

    def run(self) -> None:
        children: list[_Child] = []
        with selectors.DefaultSelector() as events:
            try:
                for number in range(self._processes):
                    child = self._fork(number, children)
                    children.append(child)
                    events.register(child.line, selectors.EVENT_READ, child)
                while events.get_map():
                    for event, _ in events.select():
                        if not self._hear(event.data):
                            events.unregister(event.fileobj)
            finally:
                # Whoever is still at work (Ctrl-C, a defect of ours) finds nobody to tell, and ends with what it has started.
                for child in children:
                    child.line.close()
                for child in children:
                    os.waitpid(child.pid, 0)

    def _fork(self, number: int, others: list[_Child]) -> _Child:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for other in others:
                other.line.close()
            os.environ["TEST_PROCESS"] = f"{number}/{self._processes}"
            _be_a_child(self._session, self._stretches, theirs)
        theirs.close()
        return _Child(pid, ours, _KINDS[number % len(_KINDS)])

    def _hear(self, child: _Child) -> bool:
        """Take what a child has to say; true while there is more to come."""
        try:
            received = child.line.recv(1 << 16)
        except ConnectionResetError:
            received = b""
        if not received and not child.is_done:
            self._fail(child, f"The process that ran {child.runs} died of it. What else it had been given was not run.")
        *messages, child.heard = (child.heard + received).split(b"\n")
        for message in messages:
            self._take(child, *json.loads(message))
        return bool(received)

    def _take(self, child: _Child, kind: str, told: Any) -> None:  # noqa: ANN401 - each kind has its own
        if kind == "wants":
            # Who asked may have been killed since: the end of its line, which comes next, tells of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                child.line.sendall(f"{json.dumps(self._next(child.prefers))}\n".encode())
        elif kind == "runs":
            child.runs = told
        elif kind == "report":
            child.reports.append(told)
        elif kind == "over":
            self._tell(child)
        elif kind == "broken":
            self._fail(child, told)
        else:
            child.is_done = True

    def _next(self, prefers: str) -> int | None:
        """The next stretch: of its own kind from the front; else what is left of others from the end, where their first takers
        come last: tests that share a running product follow each other.
        """
        if self._session.shouldstop or self._session.shouldfail:
            return None
        for kind in (prefers, *_KINDS, ""):
            places = self._waiting if kind == prefers else reversed(self._waiting)
            for place in places:
                if self._stretches[place].file.startswith(kind):
                    self._waiting.remove(place)
                    return place
        return None

    def _tell(self, child: _Child) -> None:
        """What pytest would have told if this process had run the stretch."""
        config = self._session.config
        for told in child.reports:
            report = config.hook.pytest_report_from_serializable(config=config, data=told)
            if report.when == "setup":
                config.hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
            config.hook.pytest_runtest_logreport(report=report)
            if report.when == "teardown":
                config.hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
        child.reports.clear()

    def _fail(self, child: _Child, words: str) -> None:
        self._tell(child)
        place = (child.runs.partition("::")[0], None, child.runs)
        report = pytest.TestReport(child.runs, place, {}, "failed", words, "teardown")
        self._session.config.hook.pytest_runtest_logreport(report=report)
        child.is_done = True


def _be_a_child(session: pytest.Session, stretches: list[Stretch], line: socket.socket) -> NoReturn:
    status = 1
    os.register_at_fork(after_in_child=lambda: _leave(line))
    try:
        worker = _Worker(session, stretches, line)
        try:
            worker.run()
        except BaseException:  # noqa: BLE001 - of whatever it dies, it is told
            worker.say("broken", f"A process that ran tests ended after {worker.ran}:\n{traceback.format_exc()}")
        worker.say("done", "")
        status = 0
    finally:
        # Nothing of the process that it was forked from is finished here a second time.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _leave(line: socket.socket) -> None:
    """What a test forks says nothing here, and does not keep the line open when its parent dies: that would never be told."""
    descriptor = line.detach()
    if descriptor >= 0:
        os.close(descriptor)


class _Worker:
    """In a child: runs what it is given, and says each report."""

    def __init__(self, session: pytest.Session, stretches: list[Stretch], line: socket.socket) -> None:
        self._session = session
        self._stretches = stretches
        self._line = line
        self._answers = line.makefile("r", encoding="utf-8")
        self.ran = "no test"

    def run(self) -> None:
        config = self._session.config
        plugins = config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.register(self)
        # What tests print is caught in a file, which must not be everybody's.
        capture = plugins.get_plugin("capturemanager")
        assert capture is not None
        capture.stop_global_capturing()
        capture.start_global_capturing()
        try:
            self._run_stretches()
        finally:
            self._session._setupstate.teardown_exact(None)
        # As at the end of every run: what was left open, and only the garbage collector met, is an error.
        config._ensure_unconfigure()

    def _run_stretches(self) -> None:
        items = self._session.items
        stretch = self._ask()
        while stretch is not None:
            following: Stretch | None = None
            for index in range(stretch.start, stretch.stop):
                upcoming = index + 1
                if upcoming == stretch.stop:
                    following = self._ask()
                    upcoming = len(items) if following is None else following.start
                item = items[index]
                self.ran = item.nodeid
                self.say("runs", item.nodeid)
                next_item = items[upcoming] if upcoming < len(items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=next_item)
                if self._session.shouldfail or self._session.shouldstop:
                    following = None
                    break
            self.say("over", "")
            stretch = following

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        config = self._session.config
        self.say("report", config.hook.pytest_report_to_serializable(config=config, report=report))

    def say(self, kind: str, told: object) -> None:
        self._line.sendall(f"{json.dumps([kind, told], default=str)}\n".encode())

    def _ask(self) -> Stretch | None:
        self.say("wants", "")
        place = json.loads(self._answers.readline())
        return None if place is None else self._stretches[place]
