"""The ground of the host tests: what is booted is a clean Debian that reaches the provider and nobody else."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.debian_machine import DebianMachine
from tests.support.debian_roots import Release
from tests.support.host_world import PROVIDER_NAME, World


def test_a_clean_debian_boots_reboots_and_reaches_the_provider(
    machines: Callable[[str], DebianMachine], release: Release, world: World
) -> None:
    machine = machines("second.example.test")
    connect = f"exec 3<>/dev/tcp/{PROVIDER_NAME}/{world.provider.port}"

    found = machine.told("cat", "/etc/os-release")
    machine.run("sh", "-c", "echo kept >/var/kept; echo gone >/run/gone")
    reached = [machine.run("bash", "-c", connect, check=False).returncode]
    machine.reboot()
    reached.append(machine.run("bash", "-c", connect, check=False).returncode)
    unknown = machine.run("getent", "hosts", "example.org", check=False).returncode

    assert f'VERSION_ID="{release.version}"' in found
    assert machine.run("dpkg", "-s", "nginx-light", check=False).returncode != 0
    assert reached == [0, 0]
    assert unknown != 0
    assert machine.told("cat", "/var/kept") == "kept"
    assert machine.run("test", "-e", "/run/gone", check=False).returncode != 0
