"""The servers that tests speak to: private, on loopback, started once per run and stopped at its end.

A server that is not installed fails the tests that need it, with the name of its package; nothing is ever skipped.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent._hub_local import get_hub_if_exists
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from tests.support.certificates import Certificate, make_certificate
from tests.support.nginx import PrivateNginx
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.provider import Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy

# No example is refused for taking long, neither to draw nor to run (by default 0.2 s): the machine may be busy.
hypothesis_settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("patient")

# Roomy limits: journeys share one address and often one key. Tests of limits start a proxy of their own. They also share a
# provider that fails on demand: what fails is neither repeated nor left alone.
ROOMY = {
    "RATE_LIMIT_PER_MINUTE": "6000",
    "RATE_LIMIT_BURST": "1000",
    "LOGIN_RATE_LIMIT_PER_MINUTE": "6000",
    "LLM_RETRIES": "0",
    "CIRCUIT_FAILURES": "0",
}


class OutsideConnection(AssertionError):
    """A test tried to reach something else than this machine."""


def _refuse_outside(event: str, arguments: tuple[object, ...]) -> None:
    """Audit hook (sys.addaudithook): it sees every connect and every name look-up of this process, gevent's included."""
    if event in {"socket.connect", "socket.sendto"}:
        address = arguments[1]
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            message = f"tests speak to loopback only, not to {address!r}"
            raise OutsideConnection(message)
    elif event == "socket.getaddrinfo" and not _is_loopback(arguments[0]):
        raise socket.gaierror(socket.EAI_NONAME, "tests look up no names outside this machine")


# tests/host runs in a network that holds nothing but its machines and leads nowhere (scripts/test-host).
_MACHINES = os.environ.get("TEST_HOST_NETWORK")
_MACHINES6 = f"fd00:{':'.join(_MACHINES.split('.')[1:])}::" if _MACHINES else None


def _is_loopback(host: object) -> bool:
    if host is None:
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    if name in {"", "localhost"} or (
        _MACHINES and _MACHINES6 and (name.startswith((f"{_MACHINES}.", _MACHINES6)) or name.endswith(".test"))
    ):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def pytest_configure() -> None:
    """The guard is up before the first test module is imported, and for the whole run: an audit hook cannot be removed."""
    sys.addaudithook(_refuse_outside)


@pytest.fixture(autouse=True)
def _event_loop_knows_the_time() -> None:
    """gevent's loop stands still while tests without it run, and its clock with it: `joinall(timeout=60)` of a test that comes
    minutes later would be over at once. (`gevent.Timeout`, which the product uses, looks at the clock itself.)
    """
    hub = get_hub_if_exists()
    if hub is not None:
        hub.loop.update_now()


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a short path, for unix sockets: their names end at 107 bytes, and pytest's own folders are longer."""
    folder = Path(tempfile.mkdtemp(prefix="slp-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for localhost, signed by an authority that only this run's clients trust."""
    return make_certificate(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    """A private PostgreSQL; `create_database()` gives an empty database of its own to each asker."""
    with PrivatePostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """A private Redis, shared by the run: use keys of your own. Tests that stop it or flush it start one of their own."""
    with PrivateRedis(password="correct-horse-battery") as server:
        yield server


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """An LLM provider that misbehaves on request, shared by the run."""
    with Provider() as server:
        yield server


@pytest.fixture(scope="session")
def embedded_proxy(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """The product as a fresh clone starts it: SQLite, no Redis, one worker, reached directly."""
    settings = {**ROOMY, "LLM_API_URL": provider.base_url, "LLM_API_KEY": "sk-test-provider"}
    with RunningProxy(short_folder / "embedded", settings) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def clustered_proxy(
    provider: Provider,
    postgresql: PrivatePostgreSQL,
    redis_server: PrivateRedis,
    certificate: Certificate,
    short_folder: Path,
) -> Iterator[RunningProxy]:
    """The product as a host runs it: PostgreSQL, Redis, three workers on a unix socket, nginx with TLS in front."""
    home = short_folder / "clustered"
    settings = {
        **ROOMY,
        "LLM_API_URL": provider.base_url,
        "LLM_API_KEY": "sk-test-provider",
        "DATABASE_URL": postgresql.create_database(),
        "REDIS_URL": redis_server.url,
        # A busy machine is no Redis that is away: after 0.25 s each worker would grant, and tell, its share of the limits.
        "REDIS_TIMEOUT": "10",
        "WORKERS": "3",
    }
    front = PrivateNginx(short_folder / "nginx", certificate, socket=home / "web.sock")
    proxy = RunningProxy(home, settings, on_unix_socket=True, front_url=front.base_url, authority=certificate.authority)
    with front, proxy:
        yield proxy


@pytest.fixture(scope="session")
def stock_proxy(provider: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """The reference that the hot path is held to: gunicorn's stock gevent worker and plain Flask views."""
    settings = {**ROOMY, "LLM_API_URL": provider.base_url, "LLM_API_KEY": "sk-test-provider", "HOT_PATH": "false"}
    with RunningProxy(short_folder / "stock-shape", settings) as proxy:
        yield proxy


@pytest.fixture(scope="session", params=["embedded", "clustered", "stock"])
def proxy(request: pytest.FixtureRequest) -> RunningProxy:
    """The product in its shapes: every test that takes this runs against each."""
    running = request.getfixturevalue(f"{request.param}_proxy")
    assert isinstance(running, RunningProxy)
    return running


@pytest.fixture(scope="session")
def api_key(proxy: RunningProxy) -> str:
    """A working API key of `proxy`. Tests that count requests make one of their own with `proxy.create_api_key()`."""
    return proxy.shared_api_key
