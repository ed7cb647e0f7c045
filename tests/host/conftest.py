"""One installed machine for all tests of a run; who must break one gets a machine of its own from `new_machine`.

Started by scripts/test-host only: it makes the network, once for each Debian (TEST_HOST_RELEASE).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.debian_machine import DebianMachine
from tests.support.debian_roots import RELEASES, Release, wheels_for
from tests.support.host_world import BRIDGE, MACHINES, NETWORK, PROVIDER, World
from tests.support.installed_host import InstalledHost, export_source, install

MachineMaker = Callable[[str], DebianMachine]


@pytest.fixture(scope="session")
def release() -> Release:
    wanted = os.environ.get("TEST_HOST_RELEASE", "")
    found = [release for release in RELEASES if release.version == wanted]
    if not found:
        pytest.fail("The host tests are started by scripts/test-host, which says for which Debian.")
    return found[0]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World.make(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree under test, as a fresh clone would have it."""
    return export_source(tmp_path_factory.mktemp("source") / "tree")


@pytest.fixture(scope="session")
def machines(
    release: Release, world: World, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MachineMaker]:
    """Boots a clean Debian by one of the names of MACHINES (its clients know it by that); all end with the run."""
    with ExitStack() as running:

        def make(domain: str) -> DebianMachine:
            address = MACHINES[domain]
            name = f"d{release.version}-{domain.partition('.')[0]}"
            last = address.rpartition(".")[2]
            machine = DebianMachine(
                release,
                tmp_path_factory.mktemp("machine") / name,
                name=name,
                binds={source: "/src", wheels_for(release): "/wheels"},
                bridge=BRIDGE,
                address=address,
                address6=f"fd00:{NETWORK.split('.')[1]}:{NETWORK.split('.')[2]}::{last}",
                gateway=PROVIDER,
            )
            return running.enter_context(machine)

        yield make


@pytest.fixture(scope="session")
def host(machines: MachineMaker, world: World, tmp_path_factory: pytest.TempPathFactory) -> InstalledHost:
    """The product, installed on a clean Debian. Leave it serving."""
    return install(machines("llm.example.test"), world, tmp_path_factory.mktemp("installed"))
