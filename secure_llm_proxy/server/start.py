"""From checked settings to the supervisor: the same process, with everything that it needed for the checks let go.

The supervisor takes our place by exec(2): same pid, same terminal, same lock on the data directory, none of our memory.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.server.supervisor import STOP_SIGNALS, listens
from secure_llm_proxy.settings import Settings

if TYPE_CHECKING:
    from secure_llm_proxy.server.supervisor import ChildPlan, Plan

_PROJECT = Path(__file__).resolve().parents[2]
_DEMO_SEES = ("PATH", "LANG", "HOME", "PYTHONPATH")


def become_supervisor(settings: Settings, ready: str) -> NoReturn:
    """Every check has passed: supervise the audit writer and the server, and say `ready` when they are up.

    Raises `OperatorError` when another one works on the same data.
    """
    lock = _lock_instance(settings.server.instance_directory)
    environment = {**os.environ, "PYTHONPATH": str(_PROJECT)}
    # `ready` may hold an API key: arguments stand in the process list, and files stay; a pipe does neither. It is short
    # (4 KB at most, a pipe holds 16 KB everywhere), so that nobody need read while we write.
    plan_end, our_end = os.pipe()
    with os.fdopen(our_end, "wb") as pipe:
        pipe.write(json.dumps(plan(settings, ready)).encode())
    for kept in (plan_end, lock.fileno()):
        os.set_inheritable(kept, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, signal.SIGHUP})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, _python("-m", "secure_llm_proxy.server.supervisor", str(plan_end)), environment)  # noqa: S606


def plan(settings: Settings, ready: str) -> Plan:
    """What the supervisor is to do. Holds no secret but those in `ready`."""
    writer: ChildPlan = {
        "name": "audit writer",
        "command": _python("-m", "secure_llm_proxy.audit"),
        "added": {},
        "without": [],
        "only": None,
        "stop_s": 15,
        "address": str(settings.audit.socket),
        "answers": False,
    }
    server: ChildPlan = {
        "name": "server",
        "command": _python("-m", "gunicorn", "-c", str(_PROJECT / "gunicorn.conf.py"), "app:app"),
        "added": {},
        # Only the writer may hold the key to what was recorded.
        "without": ["AUDIT_KEK", "AUDIT_KEK_PREVIOUS"],
        "only": None,
        "stop_s": settings.server.graceful_timeout_s + 10,
        "address": _server_address(settings),
        "answers": True,
    }
    children = [writer, server]
    if not settings.upstream.names_a_provider:
        port = _free_port()
        server["added"]["DEMO_UPSTREAM_URL"] = f"http://127.0.0.1:{port}/v1"
        demo: ChildPlan = {
            "name": "demo upstream",
            "command": _python("-m", "secure_llm_proxy.demo", "--port", str(port)),
            "added": {},
            "without": [],
            "only": list(_DEMO_SEES),
            "stop_s": 5,
            "address": ("127.0.0.1", port),
            "answers": False,
        }
        children.insert(1, demo)
    return {
        "children": children,
        "check": _python(str(_PROJECT / "manage.py"), "check-settings"),
        "ready": ready,
        "log_format": settings.telemetry.log_format,
        "log_level": settings.telemetry.log_level,
    }


def require_free_address(settings: Settings) -> None:
    """Raise `OperatorError` when another process listens already where the server would."""
    address = _server_address(settings)
    if isinstance(address, str):
        if listens(address):
            raise OperatorError(f"Another process listens on {address}; stop it or set BIND.")
        return
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise OperatorError(
                f"Port {address[1]} needs privileges; choose one above 1023 with --port or PORT."
            ) from None
        except OSError as error:
            raise OperatorError(
                f"Port {address[1]} on {address[0]} is taken ({error.strerror}); choose another with --port or PORT."
            ) from None


def _python(*arguments: str) -> list[str]:
    # -P: modules are ours and the environment's, never those of the folder that we were started in.
    return [sys.executable, "-P", *arguments]


def _lock_instance(directory: Path) -> IO[bytes]:
    """Hold the data directory for one `manage.py serve`; the kernel lets go of it however we end."""
    directory.joinpath("run").mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = directory.joinpath("run", "serve.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise OperatorError(
            f"Another `manage.py serve` works on {directory}; stop it, or give this one its own INSTANCE_DIR."
        ) from None
    return lock


def _server_address(settings: Settings) -> str | tuple[str, int]:
    if settings.server.bind is not None:
        return settings.server.bind.removeprefix("unix:")
    return settings.server.host, settings.server.port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
