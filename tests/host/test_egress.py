"""Whom an installed host lets the product speak to, shown by trying: as the services' users, in the web service's own
cgroup, as root and as somebody else, with the name server away, after the rules were flushed, and after a boot.

Whoever is tried answers, as the others' attempts show: a refusal is this host's.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from ipaddress import ip_address, ip_network
from typing import cast

import pytest

from tests.support.host_world import (
    METADATA,
    PROVIDER,
    PROVIDER6,
    PROVIDER_NAME,
    ROTATION,
    STRANGER,
    STRANGER6,
    World,
)
from tests.support.installed_host import WEB, InstalledHost
from tests.support.programs import wait_until
from tests.support.provider import Mode
from tests.support.steady_load import SteadyLoad

EGRESS = "/opt/secure_llm_proxy/scripts/egress"
FIREWALL = "/opt/secure_llm_proxy/scripts/firewall"
WEB_USER, AUDIT_USER, SOMEBODY = "secure_llm_proxy", "secure-llm-audit", "www-data"
WANTED = "secure-llm-egress-wanted.path"
# They put the filter back within seconds, and so do those of them that are at it.
WATCHERS = ("secure-llm-egress-places.path", "secure-llm-egress-places.timer", "secure-llm-egress.timer", WANTED)
AT_IT = tuple(f"secure-llm-egress{name}.service" for name in ("", "-places", "-wanted"))
SECOND_NAME = "second.provider.test"
# Runs inside: tries the places on standard input, and tells of each whether somebody answered.
ATTEMPTS = r"""
import json, socket, struct, sys

def attempt(kind, host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if kind == "tcp":
        with socket.create_connection((host, port), 15) as stream:
            return stream.recv(5) == b"hello"
    if kind == "icmp":
        asked = socket.socket(family, socket.SOCK_DGRAM, 58 if family == socket.AF_INET6 else 1)
        question = struct.pack("!BBHHH", 128 if family == socket.AF_INET6 else 8, 0, 0, 7, 1)
    else:
        asked, question = socket.socket(family, socket.SOCK_DGRAM), b"a question"
    asked.settimeout(15)
    asked.connect((host, port))
    asked.send(question)
    return bool(asked.recv(99))

told = {}
for name, place in json.load(sys.stdin).items():
    try:
        told[name] = "answered" if attempt(*place) else "closed"
    except TimeoutError:
        told[name] = "silence"
    except OSError:
        told[name] = "refused"
json.dump(told, sys.stdout)
"""
# Runs inside: asks a stranger and the provider in turn until standard input ends; tells how often each answered and not.
PERSISTENCE = r"""
import json, select, socket, sys
stranger, provider = json.loads(sys.argv[1])
told = {"stranger answered": 0, "stranger refused": 0, "provider answered": 0, "provider refused": 0}
while not select.select([sys.stdin], [], [], 0)[0]:
    for name, place in (("stranger", stranger), ("provider", provider)):
        try:
            socket.create_connection(tuple(place), 30).close()
            told[f"{name} answered"] += 1
        except OSError:
            told[f"{name} refused"] += 1
json.dump(told, sys.stdout)
"""
Place = tuple[str, str, int]
Places = Mapping[str, Place]


def answer_at(running: ExitStack, host: str, port: int = 0) -> int:
    """Until the stack is closed, whoever connects is told `hello`, and datagrams are sent back. Returns the port of both."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = running.enter_context(socket.socket(family, socket.SOCK_STREAM))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(64)
    port = listening.getsockname()[1]
    waiting = running.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    waiting.bind((host, port))

    def greet() -> None:
        while True:
            try:
                stream, _ = listening.accept()
            except OSError:
                return
            # One who has left already is not the last one to be greeted.
            with stream, suppress(OSError):
                stream.sendall(b"hello")

    over = threading.Event()
    waiting.settimeout(0.5)

    def echo() -> None:
        while not over.is_set():
            try:
                said, who = waiting.recvfrom(4096)
                waiting.sendto(said, who)
            except TimeoutError:
                continue

    threads = [threading.Thread(target=each, daemon=True) for each in (greet, echo)]

    def end() -> None:
        over.set()
        # closing it does not end the wait
        listening.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(20)

    for thread in threads:
        thread.start()
    running.callback(end)
    return port


@pytest.fixture(scope="module")
def outside(world: World, host: InstalledHost) -> Iterator[dict[str, Place]]:
    """Places in the world that answer, none of them the provider's."""
    # From outside: inside, nobody may. It lets users ping.
    pings = ["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"]
    subprocess.run(["ip", "netns", "exec", host.machine.name, *pings], check=True, timeout=30)
    with ExitStack() as running:
        other, other6 = answer_at(running, PROVIDER), answer_at(running, PROVIDER6)
        stranger, stranger6 = answer_at(running, STRANGER), answer_at(running, STRANGER6)
        answer_at(running, METADATA, 80)
        answer_at(running, STRANGER, 53)
        yield {
            "another port of the provider": ("tcp", PROVIDER, other),
            "another port of it over IPv6": ("tcp", PROVIDER6, other6),
            "UDP to the provider": ("udp", PROVIDER, other),
            "ICMP to the provider": ("icmp", PROVIDER, 0),
            "a stranger": ("tcp", STRANGER, stranger),
            "a stranger in IPv4 inside IPv6": ("tcp", f"::ffff:{STRANGER}", stranger),
            "a stranger over IPv6": ("tcp", STRANGER6, stranger6),
            "UDP to a stranger": ("udp", STRANGER, stranger),
            "UDP to a stranger over IPv6": ("udp", STRANGER6, stranger6),
            "ICMP to a stranger over IPv6": ("icmp", STRANGER6, 0),
            "the metadata service": ("tcp", METADATA, 80),
            "a foreign name server": ("udp", STRANGER, 53),
            "a foreign name server over TCP": ("tcp", STRANGER, 53),
        }


def tried(host: InstalledHost, places: Places, *, user: str = "root", cgroup: str = "") -> dict[str, str]:
    """By name, what came of each place."""
    join = f'echo $$ >"/sys/fs/cgroup{cgroup}/cgroup.procs" && ' if cgroup else ""
    script = f'{join}exec setpriv --reuid {user} --regid {user} --init-groups python3 -c "$1"'
    told = host.machine.run("sh", "-c", script, "sh", ATTEMPTS, stdin=json.dumps(places), timeout=240)
    found: dict[str, str] = json.loads(told.stdout)
    return found


def everywhere(places: Places, what: str) -> dict[str, str]:
    return dict.fromkeys(places, what)


def is_let_through(host: InstalledHost, place: Place) -> bool:
    return tried(host, {"it": place}, user=WEB_USER) == {"it": "answered"}


def shown(host: InstalledHost) -> dict[str, object]:
    found: dict[str, object] = json.loads(host.machine.told(EGRESS, "show", "--json"))
    return found


def test_the_service_reaches_its_provider_and_nobody_else_at_all(
    host: InstalledHost, outside: dict[str, Place]
) -> None:
    answer = host.chat()
    as_service = tried(host, outside, user=WEB_USER)
    as_writer = tried(host, outside, user=AUDIT_USER)

    assert answer.status == 200
    assert as_service == everywhere(outside, "refused")
    assert as_writer == everywhere(outside, "refused")


def test_nobody_else_on_the_host_is_hindered(host: InstalledHost, outside: dict[str, Place]) -> None:
    assert tried(host, outside) == everywhere(outside, "answered")
    assert tried(host, outside, user=SOMEBODY) == everywhere(outside, "answered")


def test_the_unit_itself_refuses_the_metadata_service_even_to_root(
    host: InstalledHost, outside: dict[str, Place]
) -> None:
    cgroup = host.machine.told("systemctl", "show", "--property=ControlGroup", "--value", WEB)
    places = {name: outside[name] for name in ("the metadata service", "a stranger")}

    as_root = tried(host, places, cgroup=cgroup)
    as_service = tried(host, places, user=WEB_USER, cgroup=cgroup)

    assert as_root["a stranger"] == "answered"
    assert as_root["the metadata service"] != "answered"
    assert as_service == everywhere(places, "refused")


def test_the_operators_commands_work_as_either_user(host: InstalledHost) -> None:
    [name] = [each["name"] for each in json.loads(host.manage("providers", "list", "--json").stdout)]

    as_service = host.manage("providers", "test", name, check=False)
    as_writer = host.manage("show-status", check=False)

    assert (as_service.returncode, as_writer.returncode) == (0, 0), as_service.stdout + as_writer.stderr


def test_what_was_refused_is_counted_and_shown(host: InstalledHost, outside: dict[str, Place]) -> None:
    _, where, port = outside["a stranger"]

    before = shown(host)["packets"]
    tried(host, {"a stranger": outside["a stranger"]}, user=WEB_USER)
    after = shown(host)

    assert isinstance(before, dict)
    assert isinstance(after["packets"], dict)
    assert after["packets"]["refused"] > before["refused"]
    assert f"{where} tcp {port}" in str(after["refused_lately"])


def test_a_provider_that_is_added_by_command_is_let_through_with_its_port_alone(
    host: InstalledHost, world: World, outside: dict[str, Place]
) -> None:
    world.names.names[SECOND_NAME] = STRANGER
    with ExitStack() as running:
        second, six = answer_at(running, STRANGER), answer_at(running, STRANGER6)
        places: dict[str, Place] = {"by name": ("tcp", STRANGER, second), "by address": ("tcp", STRANGER6, six)}
        before = tried(host, places, user=WEB_USER)

        for name, url in (
            ("by-name", f"https://{SECOND_NAME}:{second}/v1"),
            ("six", f"https://[{STRANGER6}]:{six}/v1"),
        ):
            host.manage("providers", "add", name, "--kind", "openai_compatible", "--url", url, "--no-key")
        wait_until(
            lambda: tried(host, places, user=WEB_USER) == everywhere(places, "answered"),
            what="the new providers are let through",
            seconds=120,
        )
        others = tried(host, outside, user=WEB_USER)
        for name in ("by-name", "six"):
            host.manage("providers", "remove", name, "--yes")

    assert before == everywhere(places, "refused")
    assert others == everywhere(outside, "refused")


def test_a_name_that_can_t_be_looked_up_keeps_its_addresses(host: InstalledHost, world: World) -> None:
    provider: Place = ("udp", PROVIDER, 53)

    def seen() -> dict[str, object]:
        name = f"{PROVIDER_NAME}:{world.provider.port}"
        return next(place for place in _places(host) if place["place"] == name)

    def looked_in_vain() -> bool:
        # One that the timer had begun before is waited for and not begun again: it had its answer.
        host.machine.run("systemctl", "start", "secure-llm-egress.service", check=False, timeout=180)
        return bool(seen()["trouble"])

    known = seen()
    world.names.silent = True
    try:
        wait_until(looked_in_vain, what="the name was looked up in vain", seconds=180)
        meanwhile = seen()
    finally:
        world.names.silent = False

    # Where its name led to in other tests, too: what it led to is kept for a day.
    assert PROVIDER in cast("list[str]", known["addresses"])
    assert meanwhile["addresses"] == known["addresses"]
    assert meanwhile["in_force"] is True
    assert tried(host, {"the resolver": provider}, user=WEB_USER) != {"the resolver": "refused"}
    assert host.chat().status == 200


def test_a_provider_whose_name_leads_elsewhere_each_second_loses_no_request(host: InstalledHost, world: World) -> None:
    # The models on offer are known from now on.
    assert host.chat().status == 200
    # Nobody but the service's own word makes the filter look again.
    host.machine.run("systemctl", "stop", "secure-llm-egress.timer")
    # No connection serves a plain request twice, so that each needs an address.
    world.provider.script(Mode.OK, headers={"Connection": "close"})
    try:
        with world.rotating() as named, SteadyLoad(host, host.key, plain=3, streams=1, pause_s=0.05) as load:
            wait_until(
                lambda: len(named) > 12 and (bool(load.outcome.failed) or len(_rotated(host)) > 1),
                what="the filter lets new addresses through",
                seconds=120,
            )
    finally:
        world.provider.clear()
        host.machine.run("systemctl", "start", "secure-llm-egress.timer")

    assert load.outcome.failed == []
    assert min(load.outcome.answered, load.outcome.finished) > 12


def test_a_service_that_asks_without_restraint_gets_one_look_in_ten_seconds(host: InstalledHost) -> None:
    # Links that lead a watcher of files astray, then writing without pause.
    asking = """
        cd /run/secure_llm_proxy && rm -rf egress-wanted && ln -s egress-wanted egress-wanted && rm egress-wanted
        ln -s /var/log egress-wanted && rm egress-wanted
        until [ "$(date +%s)" -gt "$1" ]; do : >>egress-wanted; done
    """
    # An earlier look's pause is over.
    host.machine.run("systemctl", "stop", f"{WANTED[:-5]}.service")
    began = int(host.machine.told("date", "+%s"))

    host.machine.run(
        "setpriv", "--reuid", WEB_USER, "--regid", WEB_USER, "--init-groups", "sh", "-c", asking, "sh", str(began + 5)
    )
    watches = host.machine.told("systemctl", "is-active", WANTED)
    host.machine.write_journal()
    looks = host.machine.told(
        "journalctl", "--no-pager", "-o", "cat", "-u", f"{WANTED[:-5]}.service", "-S", f"@{began}"
    )
    ended = int(host.machine.told("date", "+%s"))

    assert watches == "active"
    assert 1 <= looks.count("Starting") <= (ended - began) / 10 + 2


def test_no_packet_slips_through_while_the_rules_are_exchanged(
    host: InstalledHost, world: World, outside: dict[str, Place]
) -> None:
    _, stranger, port = outside["a stranger"]
    places = json.dumps([[stranger, port], [PROVIDER, world.provider.port]])
    # The attempts end with the exchange, which then closes their standard input.
    script = """
        for _ in $(seq 300); do nft -f /var/lib/secure-llm-egress/ruleset.nft; done |
        setpriv --reuid "$1" --regid "$1" --init-groups python3 -c "$2" "$3"
    """
    told = host.machine.told("sh", "-c", script, "sh", WEB_USER, PERSISTENCE, places, timeout=240)
    counts = json.loads(told)

    assert counts["stranger answered"] == 0
    assert counts["provider refused"] == 0
    assert min(counts["stranger refused"], counts["provider answered"]) > 100


def test_tables_of_the_hosts_own_are_left_as_they_are(host: InstalledHost, outside: dict[str, Place]) -> None:
    machine = host.machine
    chain = "type filter hook output priority 0; tcp dport 4711 counter drop"
    rules = f"table inet theirs {{\n chain output {{\n {chain}\n }}\n}}\n"
    machine.run("nft", "-f", "-", stdin=rules)
    before = machine.told("nft", "list", "table", "inet", "theirs")
    try:
        for command in ("refresh", "apply", "remove"):
            machine.run(EGRESS, command, timeout=180)
        off = tried(host, {"a stranger": outside["a stranger"]}, user=WEB_USER)
        tables_off = machine.told("nft", "list", "tables")
        machine.run(EGRESS, "apply", timeout=180)
        on = tried(host, {"a stranger": outside["a stranger"]}, user=WEB_USER)
        after = machine.told("nft", "list", "table", "inet", "theirs")
    finally:
        machine.run("nft", "delete", "table", "inet", "theirs")

    assert (off, on) == ({"a stranger": "answered"}, {"a stranger": "refused"})
    assert tables_off == "table inet theirs"
    assert after == before


def test_switched_off_and_on_again_at_once_it_is_on(host: InstalledHost, outside: dict[str, Place]) -> None:
    """Its timers begin at once when it is switched on: a look is under way when it is switched off, and again when on."""
    switching = " && ".join(f"{EGRESS} {word}" for word in ("apply", "remove", "apply", "remove", "apply"))
    host.machine.run("sh", "-c", switching, timeout=300)
    host.machine.wait_for(
        "sh", "-c", f"! systemctl show -P ActiveState {' '.join(AT_IT)} | grep -qx activating", what="no look is under way"
    )  # fmt: skip

    assert host.machine.run("systemctl", "is-failed", *AT_IT, check=False).returncode != 0
    assert tried(host, {"a stranger": outside["a stranger"]}, user=WEB_USER) == {"a stranger": "refused"}
    assert host.chat().status == 200


def test_flushed_rules_are_back_before_the_service_starts_and_after_a_boot(
    host: InstalledHost, outside: dict[str, Place]
) -> None:
    machine = host.machine
    place = {"a stranger": outside["a stranger"]}
    refused = {"a stranger": "refused"}

    # The minute must not come between the flush and what is tried.
    machine.run("systemctl", "stop", *WATCHERS, *AT_IT)
    try:
        machine.run("nft", "flush", "ruleset")
        open_now = tried(host, place, user=WEB_USER)
        machine.run("systemctl", "restart", WEB)
        after_restart = tried(host, place, user=WEB_USER)
        machine.run("nft", "flush", "ruleset")
        machine.run("systemctl", "start", "secure-llm-egress.service", timeout=180)
        after_refresh = tried(host, place, user=WEB_USER)
    finally:
        machine.run("systemctl", "start", *WATCHERS)
    machine.run("systemctl", "restart", "nftables.service")
    wait_until(
        lambda: tried(host, place, user=WEB_USER) == refused, what="the filter follows nftables.service", seconds=60
    )
    machine.run("systemctl", "stop", "nftables.service")
    machine.run(FIREWALL, "apply", "--from", f"{PROVIDER}/32", "--others", "drop")
    # A machine's network outlives its boots here, and the rules with it.
    machine.run("nft", "flush", "ruleset")
    machine.reboot()
    tables = machine.told("nft", "list", "tables")
    loaded, started = (
        int(machine.told("systemctl", "show", f"--property={what}", "--value", unit))
        for unit, what in (
            ("secure-llm-egress-boot.service", "ActiveEnterTimestampMonotonic"),
            (WEB, "ExecMainStartTimestampMonotonic"),
        )
    )
    after_boot = tried(host, outside, user=WEB_USER)
    let_in = {address: _is_let_in(host, address) for address in (PROVIDER, STRANGER)}
    machine.run(FIREWALL, "remove")
    host.wait_until_ready()

    assert open_now == {"a stranger": "answered"}
    assert after_restart == after_refresh == refused
    assert after_boot == everywhere(outside, "refused")
    assert set(tables.splitlines()) == {"table inet slp_egress", "table inet slp_firewall"}
    assert 0 < loaded < started
    assert let_in == {PROVIDER: True, STRANGER: False}
    assert _is_let_in(host, STRANGER)
    assert host.chat().status == 200


def _places(host: InstalledHost) -> list[dict[str, object]]:
    places = shown(host)["places"]
    assert isinstance(places, list)
    return places


def _rotated(host: InstalledHost) -> set[str]:
    """The addresses let through that the provider's name led to while it rotated."""
    return {
        address
        for place in _places(host)
        if str(place["place"]).startswith(PROVIDER_NAME)
        for address in cast("list[str]", place["addresses"])
        if ip_address(address) in ip_network(ROTATION)
    }


def _is_let_in(host: InstalledHost, address: str) -> bool:
    try:
        socket.create_connection((host.machine.address, 443), 15, source_address=(address, 0)).close()
    except OSError:
        return False
    return True
