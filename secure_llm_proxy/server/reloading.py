"""What gunicorn's master does on SIGHUP: the new workers first, the old ones' leave when all the new ones accept requests.

gunicorn's own reload takes leave of the old workers before it knows whether the new ones can start, ends with settings that
it can't load or whose workers can't start, and closes its listeners for an address that it may not be able to bind. Here
whatever is wrong is said in the log, and those who served go on.
"""

from __future__ import annotations

import queue
import signal
import time
from typing import Any

from gunicorn.errors import HaltServer

from secure_llm_proxy.settings import LoadedSettings, SettingsError, put_in_force, reload_settings, settings_in_force

_NOT_RELOADED = "not reloaded, those who served go on"
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_LOOK_S = 0.05
# The new workers have so many times gunicorn's `timeout` to load the application.
_BOOTS = 2
_ASK_AGAIN_S = 1.0
# A worker that can't start in place of one that died is tried again so much later.
_NEXT_TRY_S = 1.0


def install_reload(arbiter: Any) -> None:  # noqa: ANN401  gunicorn ships no types
    """From now on `arbiter`, a gunicorn master that is starting, reloads as told above."""
    steady = _SteadyMaster(arbiter)
    arbiter.reload = steady.reload
    arbiter.reap_workers = steady.reap_workers


class _SteadyMaster:
    def __init__(self, arbiter: Any) -> None:  # noqa: ANN401
        self._arbiter = arbiter
        self._reap = arbiter.reap_workers

    def reload(self) -> None:
        """Everything of `Arbiter.reload` but new listeners; returns when the old workers have left, or stay."""
        arbiter = self._arbiter
        running, options = settings_in_force(), arbiter.app.cfg
        changed = self._settings_of_now(running)
        if changed is None:
            return
        if changed.waiting:
            arbiter.log.warning("not taken by a reload, counts from the next start: %s", ", ".join(changed.waiting))
        if not self._take(changed):
            self._go_back(running, options)
            return
        old = list(arbiter.WORKERS)
        new = {arbiter.spawn_worker() for _ in range(arbiter.cfg.workers)}
        why = self._why_not_all_accept(new)
        if self._must_end():
            return
        if why is None:
            arbiter.manage_workers()
            self._wait_until_gone(set(old), arbiter.cfg.graceful_timeout)
        else:
            self._go_back(running, options)
            self._end(new)
            arbiter.log.error("%s: %s", _NOT_RELOADED, why)

    def reap_workers(self) -> None:
        """A worker that can't start in place of one that died ends the others only when none of them serves."""
        if why := self._reaped_but():
            self._arbiter.log.error("%s The others serve on.", why)
            time.sleep(_NEXT_TRY_S)

    def _reaped_but(self) -> str | None:
        """Why gunicorn would have ended the others, who serve."""
        arbiter = self._arbiter
        before = dict(arbiter.WORKERS)
        try:
            self._reap()
        except HaltServer as error:
            for pid in before.keys() - arbiter.WORKERS.keys():
                before[pid].tmp.close()
                arbiter.cfg.child_exit(arbiter, before[pid])
            if not arbiter.LISTENERS:
                # It is stopping, and goes on with that.
                return None
            if not any(_accepts(worker) for worker in arbiter.WORKERS.values()):
                raise
            return str(error.reason)
        return None

    def _settings_of_now(self, running: LoadedSettings) -> LoadedSettings | None:
        try:
            return reload_settings(running)
        except SettingsError as error:
            why = "; ".join(map(str, error.mistakes))
        self._arbiter.log.error("%s: %s", _NOT_RELOADED, why)
        return None

    def _take(self, settings: LoadedSettings) -> bool:
        """Whether gunicorn has loaded gunicorn.conf.py with `settings`."""
        put_in_force(settings)
        loads = True
        try:
            self._arbiter.app.reload()
        except SystemExit:  # gunicorn's way to say so, before anything was forked
            loads = False
        if not loads:
            self._arbiter.log.error("%s: gunicorn.conf.py does not load, its reason stands above", _NOT_RELOADED)
            return False
        self._arbiter.setup(self._arbiter.app)
        self._arbiter.log.reopen_files()
        self._arbiter.cfg.on_reload(self._arbiter)
        return True

    def _go_back(self, settings: LoadedSettings, options: object) -> None:
        put_in_force(settings)
        self._arbiter.app.cfg = options
        self._arbiter.setup(self._arbiter.app)

    def _why_not_all_accept(self, pids: set[int]) -> str | None:
        """None when all of these workers accept requests; waits for that, but when we must end."""
        arbiter = self._arbiter
        patience_s = _BOOTS * arbiter.cfg.timeout
        deadline_s = time.monotonic() + patience_s
        while not self._must_end():
            self._reaped_but()
            workers = [arbiter.WORKERS.get(pid) for pid in pids]
            if None in workers:
                return "a new worker did not start, its reason stands above"
            if all(_accepts(worker) for worker in workers):
                break
            if time.monotonic() > deadline_s:
                return f"a new worker accepts no requests after {patience_s} s"
            time.sleep(_LOOK_S)
        return None

    def _end(self, pids: set[int]) -> None:
        """SIGTERM, again each second: one that is just being forked does not hear it. SIGKILL when their time is over."""
        arbiter = self._arbiter
        deadline_s = time.monotonic() + arbiter.cfg.graceful_timeout
        while time.monotonic() < deadline_s and not self._must_end():
            for pid in pids & arbiter.WORKERS.keys():
                arbiter.kill_worker(pid, signal.SIGTERM)
            if self._wait_until_gone(pids, _ASK_AGAIN_S):
                return
        for pid in pids & arbiter.WORKERS.keys():
            arbiter.kill_worker(pid, signal.SIGKILL)
        # Of too many workers the main loop sends the oldest away.
        self._wait_until_gone(pids, _ASK_AGAIN_S)

    def _wait_until_gone(self, pids: set[int], patience_s: float) -> bool:
        """Also so that the main loop does not tell them again at each turn."""
        deadline_s = time.monotonic() + patience_s
        while pids & self._arbiter.WORKERS.keys() and not self._must_end():
            if time.monotonic() > deadline_s:
                return False
            self._reaped_but()
            time.sleep(_LOOK_S)
        return True

    def _must_end(self) -> bool:
        """Whether we were told to: then nothing else is waited for. The main loop hears it, too."""
        heard = []
        while True:
            try:
                heard.append(self._arbiter.SIG_QUEUE.get_nowait())
            except queue.Empty:
                break
        for each in heard:
            self._arbiter.SIG_QUEUE.put_nowait(each)
        return not _ENDING.isdisjoint(heard)


def _accepts(worker: Any) -> bool:  # noqa: ANN401
    """Its heartbeat file bears the time since boot from its first beat on, which is when it listens; before, the time of day."""
    try:
        return bool(worker.tmp.last_update() <= time.monotonic())
    except ValueError:  # closed
        return False
