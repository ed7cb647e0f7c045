"""The process that `manage.py serve` becomes: it starts the others, restarts what dies, and stops all of it in order.

All children start at once; that is safe, since a worker answers 503 to whatever must be recorded until the audit writer
is there. The writer stops last, so that no request runs without it and no record is left behind.

`python -m secure_llm_proxy.server.supervisor FD`: the plan, one JSON object made by `server/start.py`, is read from the
pipe FD; every check was made before. Exit codes: 0 stopped by SIGTERM or SIGINT, 1 a child did not start.

It lives as long as the server and only watches, hence plain classes and nothing but the standard library's small parts:
8 MB instead of the 74 MB of a process that has imported the command line (PSS, 2026-11-21).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time

TYPE_CHECKING = False  # what typing's constant is to a type checker, without importing typing
if TYPE_CHECKING:
    from typing import Literal, TypedDict

    class ChildPlan(TypedDict):
        """One process: `without` names variables that it must not see, `only` all that it may; `added` come on top.

        It is up when somebody listens on `address` (a socket's path, or host and port) or, with `answers`, when a health
        question is answered there. `stop_s` is how long it may take to end by itself.
        """

        name: str
        command: list[str]
        added: dict[str, str]
        without: list[str]
        only: list[str] | None
        stop_s: float
        address: str | tuple[str, int]
        answers: bool

    class Plan(TypedDict):
        """The children in the order in which they are waited for, the one that reloads last.

        `check` is a command that fails with a sentence when no server could run with the settings of now; `ready` is said
        once all are up.
        """

        children: list[ChildPlan]
        check: list[str]
        ready: str
        log_format: Literal["text", "json"]
        log_level: str


_LOGGER = "secure_llm_proxy.server.supervisor"  # __name__ is __main__ here
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_READY_S = 60.0
_LOOK_S = 0.01
_TICK_S = 0.1
_CHECK_S = 60.0
_RESTART_S = (0.0, 0.5, 1.0, 1.5)
_SETTLED_S = 10.0
_HOPELESS = {2: "its settings are wrong", 3: "its workers can't start", 4: "the application can't be loaded"}
_LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_PR_SET_PDEATHSIG = 1


class DidNotStart(Exception):
    """A child ended or did not answer; says which and why."""


class Log:
    """Lines on standard output in the form of `telemetry/logs.py`, which would bring 20 MB of imports along."""

    def __init__(self, form: Literal["text", "json"], level: str) -> None:
        self._form = form
        self._level = _LEVELS[level]

    def say(self, level: str, sentence: str, **fields: object) -> None:
        if _LEVELS[level] < self._level:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if self._form == "json":
            line = json.dumps({"timestamp": stamp, "level": level, "logger": _LOGGER, "message": sentence, **fields})
        else:
            told = [f"{name}={_one_line(str(value))}" for name, value in fields.items()]
            line = " ".join([stamp, level, _LOGGER, sentence, *told])
        print(line, flush=True)


class Child:
    """One supervised process."""

    def __init__(self, plan: ChildPlan, log: Log) -> None:
        self.name = plan["name"]
        self._plan = plan
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        self.failures = 0
        self.restart_at_s = 0.0

    def start(self) -> None:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603  the command is ours, from start to end
            self._plan["command"],
            env=self._environment(),
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  one thread only
        )

    def is_up(self) -> bool:
        address = self._plan["address"]
        return answers(address) if self._plan["answers"] else listens(address)

    def exit_code(self) -> int | None:
        return self.process.poll() if self.process is not None else None

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(self._plan["stop_s"])
        except subprocess.TimeoutExpired:
            self._log.say("WARNING", "did not stop in time, killed", child=self.name)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)

    def _environment(self) -> dict[str, str]:
        only, without = self._plan["only"], self._plan["without"]
        seen = {
            name: value for name, value in os.environ.items() if name not in without and (only is None or name in only)
        }
        return {**seen, **self._plan["added"]}


class Supervisor:
    """Runs until SIGTERM or SIGINT; then stops the children in reverse order."""

    def __init__(self, plan: Plan) -> None:
        self._log = Log(plan["log_format"], plan["log_level"])
        self._children = [Child(child, self._log) for child in plan["children"]]
        self._check = plan["check"]
        self._ready = plan["ready"]
        self._stopping = False
        self._reload_asked = False
        self._checking: subprocess.Popen[bytes] | None = None
        self._checking_since_s = 0.0

    def listen_to_signals(self) -> None:
        for name in STOP_SIGNALS:
            signal.signal(name, self._ask_to_stop)
        signal.signal(signal.SIGHUP, self._ask_to_reload)

    def run(self) -> None:
        """Start all, say so once the server answers, keep all alive. Raises `DidNotStart` when one can't; none is left."""
        try:
            for child in self._children:
                child.start()
            for child in self._children:
                self._wait_until_up(child)
            if not self._stopping:
                print(self._ready, flush=True)
            while not self._stopping:
                self._revive()
                self._reload()
                self._reap_orphans()
                time.sleep(_TICK_S)
        finally:
            if self._checking is not None:
                self._checking.kill()
            for child in reversed(self._children):
                child.stop()

    def _wait_until_up(self, child: Child) -> None:
        deadline = time.monotonic() + _READY_S
        while not self._stopping and not child.is_up():
            code = child.exit_code()
            if code is not None:
                raise DidNotStart(
                    f"The {child.name} did not start: {_HOPELESS.get(code, f'it ended with code {code}')}."
                )
            if time.monotonic() > deadline:
                raise DidNotStart(f"The {child.name} did not start within {_READY_S:.0f} s; see its log.")
            time.sleep(_LOOK_S)

    def _revive(self) -> None:
        now = time.monotonic()
        for child in self._children:
            code = child.exit_code()
            if code is None:
                if child.failures and now - child.started_s > _SETTLED_S:
                    child.failures = 0
                continue
            if child.restart_at_s <= child.started_s:
                pause = _RESTART_S[min(child.failures, len(_RESTART_S) - 1)]
                child.failures += 1
                child.restart_at_s = now + pause
                self._log.say("ERROR", "child ended, starting it again", child=child.name, exit=code, pause_s=pause)
            if now >= child.restart_at_s:
                child.start()

    def _reap_orphans(self) -> None:
        """Take the ends of processes that are not ours: as process 1 of a container, the workers of a killed gunicorn fall to us.

        Children of ours are left to `_revive` and `_reload`, who must learn how they ended.
        """
        ours = {child.process.pid for child in self._children if child.process is not None}
        if self._checking is not None:
            ours.add(self._checking.pid)
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in ours:
            os.waitpid(ended.si_pid, os.WNOHANG)

    def _ask_to_stop(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _ask_to_reload(self, _signal: int, _frame: object) -> None:
        self._reload_asked = True

    def _reload(self) -> None:
        """SIGHUP: gunicorn loads settings and application anew and lets running requests end.

        Not with wrong settings: gunicorn would end at once, and take every running request along. They are judged by a
        process of its own, which ends; nobody waits for it here.
        """
        if self._checking is None:
            if self._reload_asked:
                self._reload_asked = False
                self._checking_since_s = time.monotonic()
                self._checking = subprocess.Popen(  # noqa: S603  as above
                    self._check,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509
                )
            return
        if self._checking.poll() is None:
            if time.monotonic() - self._checking_since_s > _CHECK_S:
                self._checking.kill()
            return
        checked, self._checking = self._checking, None
        assert checked.stderr is not None
        with checked.stderr as stderr:
            why = stderr.read().decode(errors="replace").strip().removeprefix("Error: ")
        if checked.returncode != 0:
            self._log.say("ERROR", "not reloaded, the settings are wrong", why=why)
            return
        server = self._children[-1].process
        if server is not None and server.poll() is None:
            server.send_signal(signal.SIGHUP)


def listens(address: str | tuple[str, int]) -> bool:
    return _heard(address, b"") is not None


def answers(address: str | tuple[str, int]) -> bool:
    """gunicorn's master listens before it knows whether any worker can start: only a worker's answer tells."""
    heard = _heard(address, b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return heard is not None and heard.startswith(b"HTTP/1.1 200 ")


def _heard(address: str | tuple[str, int], question: bytes) -> bytes | None:
    """The first bytes of the answer; None when nobody listens or answers within a second."""
    target: str | tuple[str, int]
    if isinstance(address, str):
        family, target = socket.AF_UNIX, address
    else:
        host, port = address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  a name, not a bind
        family, target = (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)
    with socket.socket(family) as probe:
        probe.settimeout(1)
        try:
            probe.connect(target)
            probe.sendall(question)
            return probe.recv(64) if question else b""
        except OSError:
            return None


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _die_with_parent() -> None:
    """A killed supervisor must not leave a server without audit writer behind (prctl(2), Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(descriptor: int) -> int:
    with open(descriptor, "rb") as pipe:
        plan: Plan = json.load(pipe)
    supervisor = Supervisor(plan)
    supervisor.listen_to_signals()
    # `server/start.py` blocked them, so that none came between its handlers and ours.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, signal.SIGHUP})
    try:
        supervisor.run()
    except DidNotStart as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
