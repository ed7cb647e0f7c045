"""Gunicorn's options, from our settings. `gunicorn app:app` and `manage.py serve` both read this file."""

import fcntl
import gc
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secure_llm_proxy.server.reloading import install_reload
from secure_llm_proxy.settings import settings_in_force

# A reload runs this file again, with the settings that it has put in force before (server/reloading.py).
_settings = settings_in_force().settings
_server = _settings.server

_host = f"[{_server.host}]" if ":" in _server.host else _server.host
bind = _server.bind or f"{_host}:{_server.port}"
workers = _server.workers
_worker = "hot_worker.HotWorker" if _server.hot_path else "worker.Worker"
worker_class = f"secure_llm_proxy.server.{_worker}"
worker_connections = _server.worker_connections
graceful_timeout = _server.graceful_timeout_s
timeout = 60
keepalive = _server.keepalive_s
max_requests = _server.max_requests
max_requests_jitter = _server.max_requests // 10
# gunicorn's other parser (h1c) accepts bare LF, folded lines and underscore aliases: banned.
http_parser = "python"
header_map = "refuse"
forwarder_headers = ""
forwarded_allow_ips = ""
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
control_socket_disable = True
accesslog = None

umask = 0o007
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  a heartbeat must not wait for a disk


def _metrics_root() -> Path:
    """Counters are memory-mapped files: on a full disk a write to one kills the worker, so memory is preferred."""
    instance = _server.instance_directory
    name = f"slp-counters-{os.getuid()}-{hashlib.sha256(str(instance).encode()).hexdigest()[:16]}"
    directory = Path("/dev/shm", name)  # noqa: S108  used only if it is ours alone
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return directory
    except OSError:
        pass
    return instance / "run" / "prometheus"


# READY=1 is said by the first worker that accepts connections (server/worker.py): gunicorn's master would say it before
# it knows whether any worker can start. A reload runs this file again, and its workers have nothing new to say to systemd.
_notify_socket = os.environ.pop("NOTIFY_SOCKET", None)


def on_starting(arbiter: Any) -> None:
    """Counters of each master stand apart: those of another, dead or draining beside it, would be added to them."""
    install_reload(arbiter)
    with _guarded_metrics() as root:
        for left_over in root.iterdir():
            if not _is_held(left_over):
                shutil.rmtree(left_over, ignore_errors=True)
        ours = tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root)
        # Never closed: it is held for as long as this master or one of its workers lives.
        fcntl.flock(os.open(ours, os.O_RDONLY), fcntl.LOCK_EX)
    # prometheus_client looks at this when it is first imported: in a worker, after the fork.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = ours


def on_exit(_arbiter: Any) -> None:
    if ours := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        with _guarded_metrics() as root:
            shutil.rmtree(ours, ignore_errors=True)
            with suppress(OSError):  # another master's counters
                root.rmdir()


@contextmanager
def _guarded_metrics() -> Iterator[Path]:
    """The folder of folders, while no other master makes or removes one."""
    root = _metrics_root()
    guard = _locked(root)
    while guard is None:
        guard = _locked(root)
    try:
        yield root
    finally:
        os.close(guard)


def _locked(root: Path) -> int | None:
    """None when the last one to hold it has removed it meanwhile."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        descriptor = os.open(root, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
    return None


def _is_held(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def post_fork(_master: Any, worker: Any) -> None:
    worker.send_timeout_s = _server.send_timeout_s
    worker.notify_socket = _notify_socket


def post_worker_init(worker: Any) -> None:
    """What the worker has loaded lives as long as it does: without it in the collector's way, full collections no longer
    stop everybody (p99 at 16 clients 45 → 20 ms, two rounds, 2026-11-21). What is younger is looked through less often: nearly
    all of it goes with its last reference (p99 at 64 clients 31 → 19 ms, two rounds, the same day).
    """
    if loaded := sys.modules.get("app"):
        worker.end_running = loaded.end_running
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


def child_exit(_server: Any, worker: Any) -> None:
    from prometheus_client import multiprocess  # noqa: PLC0415  the master has no other use for it

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def worker_exit(_server: Any, _worker: Any) -> None:
    """The last requests are over: hand the rest to the audit writer, flush what was collected."""
    # Only a worker whose application was built has anything to hand over.
    if loaded := sys.modules.get("app"):
        loaded.stop()
