"""The egress filter: which addresses the product's two users may send to, as one nftables table of its own.

    egress.py apply [--places FILE] [--dry-run] | refresh [--dry-run] | publish | show [--json] | remove [--dry-run]

Run by scripts/egress, each minute by secure-llm-egress.timer: standard library only, so that a run takes a twentieth of a
second. Names are looked up here, as often as that, and an address stays let through for a day after it was last seen in an
answer: names rotate through more addresses than one answer holds. A name that can't be looked up keeps what it had.

Every change of the kernel's table is one transaction of nft; before it, the same is written to a file that is loaded at boot
before the web service starts. After it, what the kernel then says it lets through is published in /run: the web service tries
those addresses first (secure_llm_proxy/upstream/egress_list.py). Other tables, chains and rules of the host are neither read
nor written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import syslog
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

Address = IPv4Address | IPv6Address

TABLE = "slp_egress"
KEEP_S = 24 * 3600
# Of one name. Whoever answers for it can't fill the kernel; providers' names rotate through dozens.
ADDRESSES_MAX = 256
# An exchange takes ten minutes at most (UPSTREAM_TOTAL_TIMEOUT_S): one that runs with a provider that was removed ends in peace.
LEAVING_S = 15 * 60
# Elements are armed anew when half of their time is over.
REARM_S = KEEP_S // 2
LOOKUP_PATIENCE_S = 20.0
# Threads that ask at once; the unit lets it have 256.
LOOKUPS_MAX = 200
# A name seen for the first time is asked for again, twice: the first answer of many is not all there is.
FURTHER_ROUNDS, ROUND_PAUSE_S = 2, 1.0
LIST_OLD_S = 3600
# Less may be an adjustment.
CLOCK_JUMP_S = 60.0
# From the beginning of a refresh to the end of its last round.
ROUND_MAX_S = 120.0
# The service reads no larger file.
PUBLISHED_BYTES_MAX = 262_144
WEB_USER, AUDIT_USER = "secure_llm_proxy", "secure-llm-audit"
PLACES_UNIT = "secure-llm-egress-places.service"
# On while the filter is on.
UNITS = (
    "secure-llm-egress-boot.service",
    "secure-llm-egress.timer",
    "secure-llm-egress-places.timer",
    "secure-llm-egress-places.path",
    "secure-llm-egress-wanted.path",
)
LOOKS = ("secure-llm-egress.service", PLACES_UNIT, "secure-llm-egress-wanted.service")
# Link-local, where clouds hand out their machines' credentials, multicast: secure_llm_proxy/upstream/destinations.py (NEVER),
# and IPAddressDeny= of the web unit; a test holds the three together. Only an address in a URL itself leads there.
NEVER = (
    "0.0.0.0/8", "100.100.100.200/32", "168.63.129.16/32", "169.254.0.0/16", "192.0.0.192/32", "224.0.0.0/4", "255.255.255.255/32",
    "::/128", "fd00:ec2::/32", "fd20:ce::/32", "fe80::/10", "ff00::/8",
)  # fmt: skip
_SYSTEMD = Path("/run/systemd/system")
_NEVER = tuple(ip_network(text) for text in NEVER)


class EgressError(Exception):
    """Says in one sentence what went wrong, where, and what to do."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Somewhere that one of the product's processes may go. `host` is a name or an address."""

    by: str
    host: str
    port: int
    protocol: str

    @property
    def literal(self) -> Address | None:
        return _address(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{'/udp' if self.protocol == 'udp' else ''}"


@dataclass(frozen=True, slots=True, order=True)
class Element:
    """One member of a set. `timeout_s` 0: for good."""

    set_name: str
    key: str
    timeout_s: int = 0


@dataclass(slots=True)
class Seen:
    """What a name's answers held: by address, when it was last among them (seconds since the epoch)."""

    addresses: dict[str, float] = field(default_factory=dict)
    answered: float = 0.0
    trouble: str | None = None

    def learn(self, found: Iterable[Address], now: float) -> None:
        """After an answer. Addresses that no answer held for a day are gone; one from the future (the clock was set) is not kept
        for longer than others. Of too many the newest stay.
        """
        self.addresses |= {str(address): now for address in found}
        self.addresses = {text: min(last, now) for text, last in self.addresses.items() if now - last <= KEEP_S}
        self.addresses = {text: self.addresses[text] for text in self.newest()[:ADDRESSES_MAX]}
        self.answered, self.trouble = now, None

    def newest(self) -> list[str]:
        """The addresses, the one that was answered last first."""
        return sorted(self.addresses, key=self.addresses.__getitem__, reverse=True)


@dataclass(slots=True)
class Memory:
    """What is kept between runs. `leaving` are places that are no longer on the list, with the time until which they stay."""

    places: list[Place] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    leaving: dict[Place, float] = field(default_factory=dict)
    listed: float = 0.0
    refreshed: float = 0.0
    stored_providers: bool = True

    @classmethod
    def read(cls, path: Path) -> Memory:
        """Nothing is remembered where there is no such file, or none that can be read: addresses are learnt anew."""
        try:
            kept = json.loads(path.read_text("utf-8"))
            return cls(
                [Place(*row) for row in kept["places"]],
                {name: Seen(row["addresses"], row["answered"], row["trouble"]) for name, row in kept["seen"].items()},
                {Place(*row): until for row, until in kept["leaving"]},
                kept["listed"],
                kept["refreshed"],
                kept["stored_providers"],
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            complain(f"{path} can't be read ({error}); addresses are learnt anew")
            return cls()

    def write(self, path: Path) -> None:
        rows = {
            "places": [_row(place) for place in self.places],
            "seen": {
                name: {"addresses": seen.addresses, "answered": seen.answered, "trouble": seen.trouble}
                for name, seen in self.seen.items()
            },
            "leaving": [[_row(place), until] for place, until in self.leaving.items()],
            "listed": self.listed,
            "refreshed": self.refreshed,
            "stored_providers": self.stored_providers,
        }
        write_whole(path, json.dumps(rows, indent=1) + "\n")

    def list_anew(self, places: Iterable[Place], now: float, listed: float) -> None:
        """`places` are the list now. What is no longer on it stays for a quarter of an hour."""
        current = sorted(set(places))
        for gone in set(self.places) - set(current):
            self.leaving.setdefault(gone, now + LEAVING_S)
        self.places, self.listed = current, listed
        for back in current:
            self.leaving.pop(back, None)

    def follow_clock(self, jump_s: float) -> None:
        """Somebody set the clock by so much: what was seen an hour ago still was."""
        for seen in self.seen.values():
            seen.addresses = {text: last + jump_s for text, last in seen.addresses.items()}
            seen.answered += jump_s
        self.leaving = {place: until + jump_s for place, until in self.leaving.items()}

    def forget(self, now: float) -> None:
        """What has left is gone, and names that nobody needs any more with it."""
        self.leaving = {place: min(until, now + LEAVING_S) for place, until in self.leaving.items() if until > now}
        needed = {place.host for place in (*self.places, *self.leaving)}
        self.seen = {name: seen for name, seen in self.seen.items() if name in needed}

    def fresh_names(self) -> list[str]:
        """Those of which nothing is known yet."""
        return [name for name in self.names() if name not in self.seen or not self.seen[name].addresses]

    def names(self) -> list[str]:
        return sorted({place.host for place in self.places if place.literal is None})

    def elements(self, now: float) -> list[Element]:
        """What the sets of places hold: addresses of names for a day, addresses that stand in a URL for good."""
        times = {
            **dict.fromkeys(self.places, 0),
            **{place: max(1, int(until - now)) for place, until in self.leaving.items()},
        }
        found: dict[tuple[str, str], int] = {}
        for place, leaving_s in times.items():
            for address in self.addresses_of(place):
                where = _member(place, address)
                timeout_s = leaving_s or (0 if place.literal is not None else KEEP_S)
                # two places may share an address: the longer time holds
                known = found.get(where)
                found[where] = timeout_s if known is None else 0 if 0 in (known, timeout_s) else max(known, timeout_s)
        return sorted(Element(set_name, key, timeout_s) for (set_name, key), timeout_s in found.items())

    def addresses_of(self, place: Place) -> list[Address]:
        """Its own, or its name's, the one that was answered last first."""
        literal = place.literal
        return [literal] if literal is not None else [*map(ip_address, self.seen.get(place.host, Seen()).newest())]


def _member(place: Place, address: Address) -> tuple[str, str]:
    """In which set of the table it is let through, and as what."""
    kind = "stated" if place.literal is not None and place.by == "web" else "places"
    return f"{place.by}_{kind}{address.version}", f"{address} . {place.protocol} . {place.port}"


def _few(words: Iterable[str], *, most: int = 8) -> str:
    """Whoever answers for a name writes no book in the journal."""
    known = [*words]
    return " ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def _row(place: Place) -> list[str | int]:
    return [place.by, place.host, place.port, place.protocol]


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # the kernel sends to it as IPv4
        return address.ipv4_mapped
    return address


def is_never(address: Address) -> bool:
    return any(address in network for network in _NEVER)


# ---------------------------------------------------------------- what is read


def read_places(text: str, *, stored_providers: bool = True) -> list[Place]:
    """The output of `manage.py providers egress --json`. Raises `EgressError` for anything else, also for half of it."""
    try:
        rows = json.loads(text)
        places = [
            Place(_word(row, "by", ("web", "audit")), _host(row), _port(row), _word(row, "protocol", ("tcp", "udp")))
            for row in rows
            if stored_providers or row["sources"] != ["database"]
        ]
        # The operator's commands about the log run as the writer's user, and ask these too.
        places += [
            Place("audit", _host(row), _port(row), "tcp") for row in rows if {"database", "redis"} & set(row["for"])
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise EgressError(f"the list of places is not what `providers egress --json` prints ({error!r})") from None
    return sorted(set(places))


def _word(row: Mapping[str, object], name: str, words: tuple[str, ...]) -> str:
    if row[name] not in words:
        raise ValueError(f"{name}={row[name]!r}")
    return str(row[name])


def _host(row: Mapping[str, object]) -> str:
    host = row["host"]
    if (
        not isinstance(host, str)
        or not host
        or any(character.isspace() or character in "{};\"'/\\" for character in host)
    ):
        raise ValueError(f"host={host!r}")
    return host


def _port(row: Mapping[str, object]) -> int:
    port = row["port"]
    if not isinstance(port, int) or not 0 < port < 65_536:  # noqa: PLR2004  the ports there are
        raise ValueError(f"port={port!r}")
    return port


def read_resolvers(text: str) -> list[Address]:
    """The resolvers that resolv.conf(5) names. None named: the one on this host, as the C library has it."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            # the interface behind a link-local address is none of the packet's
            address = _address(words[1].partition("%")[0])
            if address is not None and address not in found:
                found.append(address)
    return found or [IPv4Address("127.0.0.1")]


# ---------------------------------------------------------------- names


def look_up(names: Iterable[str], *, patience_s: float = LOOKUP_PATIENCE_S) -> dict[str, list[Address] | str]:
    """By name its addresses, or why there are none. Very many at once; whoever has no answer in time has none."""
    names = [*names]
    waiting = deque(names)
    answers: dict[str, list[Address] | str] = {}

    def ask(name: str) -> None:
        try:
            found = {
                _address(str(row[4][0]).partition("%")[0])
                for row in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            }
            answers[name] = [address for address in found if address is not None]
        except (OSError, UnicodeError) as error:
            answers[name] = str(error)

    def ask_on() -> None:
        while waiting:
            with suppress(IndexError):
                ask(waiting.popleft())

    threads = [threading.Thread(target=ask_on, daemon=True) for _ in names[:LOOKUPS_MAX]]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    waiting.clear()
    return {name: answers.get(name, f"no answer within {patience_s:.0f} s") for name in names}


def learn_addresses(memory: Memory, names: Iterable[str], now: float) -> list[str]:
    """Look `names` up and remember what is new. Returns what was odd, a sentence each."""
    odd = []
    for name, answer in look_up(names).items():
        seen = memory.seen.setdefault(name, Seen())
        if isinstance(answer, str):
            seen.trouble = answer
            odd.append(f"{name} can't be looked up ({answer}); {len(seen.addresses)} known addresses stay")
            continue
        good = {address for address in answer if not is_never(address)}
        if never := set(answer) - good:
            odd.append(f"{name} leads to {_few(map(str, never))}, which is never let through by a name")
        if len(good) > ADDRESSES_MAX:
            odd.append(f"{name} leads to {len(good)} addresses at once; {ADDRESSES_MAX} of them are let through")
        seen.learn(good, now)
    return odd


# ---------------------------------------------------------------- rules

_SETS = tuple(f"{name}{version}" for name in ("web_stated", "web_places", "audit_places") for version in (4, 6))
_KEY_TYPE = {4: "ipv4_addr . inet_proto . inet_service", 6: "ipv6_addr . inet_proto . inet_service"}
# nft shows protocols by number, or by name where the host has /etc/protocols
_PROTOCOLS = {"6": "tcp", "17": "udp"}
_IP = {4: "ip", 6: "ip6"}


def table_text(web_uid: int, audit_uid: int | None, resolvers: Iterable[Address], *, audit_speaks: bool) -> str:
    """The table without what its sets of places hold.

    It looks at packets before addresses are translated (priority -110): at where the process wanted to go. What it lets
    through, other tables may still refuse.
    """
    resolvers = list(resolvers)
    lines = [f"table inet {TABLE} {{"]
    lines += [f"    counter {counter} {{ }}" for counter in ("loopback", "names", "places", "audit_refused")]
    lines.append("    counter refused { @COMMENT@}")
    lines += [f"    set {name} {{ type {_KEY_TYPE[int(name[-1])]}; flags timeout; }}" for name in _SETS]
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        never = ", ".join(str(network) for network in _NEVER if network.version == version)
        lines.append(f"    set never{version} {{ type {kind}; flags interval; elements = {{ {never} }} }}")
        ours = ", ".join(str(address) for address in resolvers if address.version == version)
        filled = f" elements = {{ {ours} }}" if ours else ""
        lines.append(f"    set resolvers{version} {{ type {kind};{filled} }}")
        # what was refused in the last hour, to be shown; no more than fits
        lines.append(
            f"    set lately{version} {{ type {_KEY_TYPE[version]}; size 128; flags dynamic,timeout; timeout 1h; }}"
        )
    lines += [
        "    chain output {",
        "        type filter hook output priority -110; policy accept;",
        f"        meta skuid {web_uid} goto web",
        *([f"        meta skuid {audit_uid} goto audit"] if audit_uid is not None else []),
        "    }",
        "    chain web {",
        '        oif "lo" fib daddr type local counter name loopback accept',
        *_names_rules(),
        *_place_rules("web_stated"),
        *(f"        {_IP[version]} daddr @never{version} goto refused" for version in (4, 6)),
        *_place_rules("web_places"),
        "        goto refused",
        "    }",
        "    chain audit {",
        '        oif "lo" fib daddr type local counter name loopback accept',
        *([*_names_rules(), *_place_rules("audit_places")] if audit_speaks else []),
        "        counter name audit_refused goto refused",
        "    }",
        "    chain refused {",
        "        counter name refused",
        *(
            f"        meta l4proto {{ tcp, udp }} update @lately{version} {{ {_IP[version]} daddr . meta l4proto . th dport }}"
            for version in (4, 6)
        ),
        '        limit rate 10/minute burst 5 packets log prefix "secure-llm-egress refused: " level warn flags skuid',
        # the web unit's IPAddressDeny= would not let the reset back in, and the attempt would wait for its end
        *(f"        {_IP[version]} daddr @never{version} reject with icmpx admin-prohibited" for version in (4, 6)),
        "        meta l4proto tcp reject with tcp reset",
        "        reject with icmpx admin-prohibited",
        "    }",
        "}",
    ]
    text = "\n".join(lines) + "\n"
    return text.replace("@COMMENT@", f'comment "rules {hashlib.sha256(text.encode()).hexdigest()[:16]}"; ')


def _names_rules() -> list[str]:
    asks = "meta l4proto { tcp, udp } th dport 53"
    return [f"        {asks} {_IP[version]} daddr @resolvers{version} counter name names accept" for version in (4, 6)]


def _place_rules(set_name: str) -> list[str]:
    return [
        f"        {_IP[version]} daddr . meta l4proto . th dport @{set_name}{version} counter name places accept"
        for version in (4, 6)
    ]


def rules_mark(text: str) -> str:
    """By which a table in the kernel is known to have been made from the same text."""
    return text.partition('comment "')[2].partition('"')[0]


def elements_text(elements: Iterable[Element]) -> str:
    by_set: dict[str, list[str]] = {}
    for element in elements:
        timeout = f" timeout {element.timeout_s}s" if element.timeout_s else ""
        by_set.setdefault(element.set_name, []).append(element.key + timeout)
    return "".join(f"add element inet {TABLE} {name} {{ {', '.join(keys)} }}\n" for name, keys in by_set.items())


def whole_text(table: str, elements: Iterable[Element]) -> str:
    """Makes the table as it should be whatever there was, in one transaction. The first line lets the second find one."""
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n{table}{elements_text(elements)}"


def exchange_text(elements: Iterable[Element]) -> str:
    """Exchanges what the sets hold in one transaction, and leaves the counters as they are."""
    return "".join(f"flush set inet {TABLE} {name}\n" for name in _SETS) + elements_text(elements)


# ---------------------------------------------------------------- the kernel's table


@dataclass(frozen=True, slots=True)
class InForce:
    """The table as the kernel has it: elements with the seconds that they have left (None: for good)."""

    mark: str
    elements: Mapping[tuple[str, str], int | None]
    counters: Mapping[str, int]

    def holds(self, table: str, elements: Iterable[Element]) -> bool:
        """Whether nothing has to be written: the same rules, the same elements, none of them near its end."""
        wanted = {(element.set_name, element.key): element.timeout_s for element in elements}
        ours = {where: left_s for where, left_s in self.elements.items() if where[0] in _SETS}
        return (
            self.mark == rules_mark(table)
            and ours.keys() == wanted.keys()
            and all(_is_armed(ours[where], timeout_s) for where, timeout_s in wanted.items())
        )


def _is_armed(left_s: int | None, timeout_s: int) -> bool:
    if not timeout_s or left_s is None:
        return not timeout_s and left_s is None
    return left_s >= REARM_S if timeout_s == KEEP_S else left_s <= timeout_s + 60


def read_in_force(listing: str) -> InForce:
    """From `nft -j list table`."""
    rows = json.loads(listing)["nftables"]
    counters = {row["counter"]["name"]: row["counter"] for row in rows if "counter" in row}
    return InForce(
        counters.get("refused", {}).get("comment", ""),
        dict(entry for row in rows if "set" in row for entry in _listed(row["set"])),
        {name: int(counter["packets"]) for name, counter in counters.items()},
    )


def _listed(row: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], int | None]]:
    for entry in row.get("elem", []):
        inner = entry.get("elem", entry) if isinstance(entry, dict) else entry
        value = inner.get("val", inner) if isinstance(inner, dict) else inner
        if isinstance(value, dict) and "concat" in value:
            key = " . ".join(
                _PROTOCOLS.get(str(word), str(word)) if at == 1 else str(word)
                for at, word in enumerate(value["concat"])
            )
        elif isinstance(value, dict) and "prefix" in value:
            key = f"{value['prefix']['addr']}/{value['prefix']['len']}"
        else:
            key = str(value)
        yield (row["name"], key), inner.get("expires") if isinstance(inner, dict) else None


def run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Raises `EgressError` when there is no such program, or it does not end."""
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603  constant programs; what comes from a list was checked
            command, input=text, capture_output=True, text=True, check=False, timeout=120, env=environment
        )
    except FileNotFoundError:
        raise EgressError(f"{command[0]} is not installed; install it and start again") from None
    except subprocess.TimeoutExpired:
        raise EgressError(f"{command[0]} did not end within two minutes") from None


def nft(*arguments: str, text: str | None = None) -> str:
    """Raises `EgressError` with what nft said."""
    ended = run("nft", *arguments, text=text)
    if ended.returncode != 0:
        said = ended.stderr.strip() or f"exit status {ended.returncode}"
        raise EgressError(
            f"nft refused ({' '.join(arguments)}): {said.splitlines()[0]}. It needs root (CAP_NET_ADMIN) and a kernel"
            " with nf_tables; in a container, the host must allow both. Without it, use --no-egress-filter."
        )
    return ended.stdout


def table_in_force() -> InForce | None:
    """None when there is no such table. Raises `EgressError` when nft can't be used at all."""
    if f"table inet {TABLE}\n" not in nft("list", "tables"):
        return None
    return read_in_force(nft("-j", "list", "table", "inet", TABLE))


# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Ground:
    """Where things stand on this host."""

    state: Path
    resolv_conf: Path
    units: Path
    runtime: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Ground:
        def place(name: str, usual: str) -> Path:
            return Path(environment.get(name) or usual)

        return cls(
            place("SLP_EGRESS_STATE", "/var/lib/secure-llm-egress"),
            place("SLP_RESOLV_CONF", "/etc/resolv.conf"),
            place("SLP_UNITS", "/etc/systemd/system"),
            place("SLP_EGRESS_RUNTIME", "/run/secure-llm-egress"),
        )

    @property
    def incoming(self) -> Path:
        """Where systemd puts the standard output of the command that lists places."""
        return self.state / "places.json"

    @property
    def memory(self) -> Path:
        return self.state / "memory.json"

    @property
    def ruleset(self) -> Path:
        """Loaded at boot. That it exists says that the filter is on."""
        return self.state / "ruleset.nft"

    @property
    def published(self) -> Path:
        """What is let through now, for the web service."""
        return self.runtime / "let-through.json"

    @property
    def drop_in(self) -> Path:
        """Of the web service. scripts/update takes it for the one that stands in meanwhile."""
        return self.units / f"{WEB_USER}.service.d" / "egress.conf"


def apply(ground: Ground, given: Path | None, *, stored_providers: bool | None, dry_run: bool) -> None:
    """The filter is on, now and after a boot."""
    memory, now = _remembered(ground)
    if stored_providers is not None:
        memory.stored_providers = stored_providers
    if given is not None:
        text = _read(given, f"the list of places {given} can't be read")
        listed = now
    else:
        if not dry_run:
            ground.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            ask_for_places()
        text = _read(ground.incoming, f"no list of places was made yet: start {PLACES_UNIT}, or give --places FILE")
        listed = ground.incoming.stat().st_mtime
    memory.list_anew(read_places(text, stored_providers=memory.stored_providers), now, listed)
    fresh = memory.fresh_names()
    for sentence in learn_addresses(memory, memory.names(), now):
        complain(sentence)
    for _ in range(FURTHER_ROUNDS if fresh and not dry_run else 0):
        time.sleep(ROUND_PAUSE_S)
        learn_addresses(memory, fresh, now)
    memory.forget(now)
    table, elements = _table(ground, memory), memory.elements(now)
    if dry_run:
        sys.stdout.write(whole_text(table, elements))
        return
    memory.refreshed = now
    ground.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    # asked first: what can't be loaded now must not stop the boot
    nft("--check", "-f", "-", text=whole_text(table, elements))
    memory.write(ground.memory)
    write_whole(ground.ruleset, whole_text(table, elements))
    nft("-f", "-", text=whole_text(table, elements))
    for sentence in publish(ground, memory):
        complain(sentence)
    write_drop_in(ground, memory)
    _switch_units(ground, "enable")
    names = len(memory.names())
    report(f"on: {len(memory.places)} places ({names} by name), {len(elements)} addresses and ports")


def refresh(ground: Ground, *, dry_run: bool) -> None:
    """Names are looked up again and the kernel's table holds what they lead to. Nothing is written that is there already."""
    if not ground.ruleset.exists():
        raise EgressError("the filter is off; turn it on with: scripts/egress apply")
    memory, now = _remembered(ground)
    before = {name: set(seen.addresses) for name, seen in memory.seen.items()}
    notes = _take_list(ground, memory, now)
    fresh = memory.fresh_names()
    notes += learn_addresses(memory, memory.names(), now)
    if _is_stale(ground, memory):
        # a refresh may not write units
        notes.append(f"{ground.drop_in} is not as it should be; run: scripts/egress apply")
    if dry_run:
        sys.stdout.write(exchange_text(memory.elements(now)))
        return
    notes += _put_in_force(ground, memory, now)
    for _ in range(FURTHER_ROUNDS if fresh else 0):
        time.sleep(ROUND_PAUSE_S)
        learn_addresses(memory, fresh, now)
        notes += _put_in_force(ground, memory, now)
    after = {name: set(seen.addresses) for name, seen in memory.seen.items()}
    for name in sorted(before | after):
        new, gone = after.get(name, set()) - before.get(name, set()), before.get(name, set()) - after.get(name, set())
        if new or gone:
            changed = _few([*(f"+{text}" for text in sorted(new)), *(f"-{text}" for text in sorted(gone))], most=32)
            notes.append(f"{name} {changed}")
    _tell(notes)


def _remembered(ground: Ground) -> tuple[Memory, float]:
    """What is known, in the time that it is now by the clock, whoever set that meanwhile."""
    memory, now = Memory.read(ground.memory), time.time()
    jump_s = clock_jump_s(ground.published, memory.refreshed, now, time.monotonic())
    if abs(jump_s) > CLOCK_JUMP_S:
        complain(f"the clock was set by {jump_s:+.0f} s; addresses are kept as long as if it had not been")
        memory.follow_clock(jump_s)
    return memory, now


def clock_jump_s(published: Path, refreshed: float, now: float, now_s: float) -> float:
    """By how much the clock was set since names were looked up, told by the kernel's own (monotonic). The list that was
    published then is of this boot, as that clock is; one of another time (by `load`, or none) tells nothing.
    """
    try:
        told = json.loads(published.read_text("utf-8"))
        looked_s, looked_at = float(told["looked_s"]), float(told["looked_at"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0
    if abs(looked_at - refreshed) > ROUND_MAX_S:
        return 0.0
    return (now - looked_at) - (now_s - looked_s)


def _put_in_force(ground: Ground, memory: Memory, now: float) -> list[str]:
    """What is remembered is in the files and in the kernel. Returns what was found wrong there, a sentence each."""
    memory.forget(now)
    memory.refreshed = now
    memory.write(ground.memory)
    table, elements = _table(ground, memory), memory.elements(now)
    looked_s = time.monotonic()
    in_force = table_in_force()
    if in_force is not None and in_force.holds(table, elements):
        return publish(ground, memory, in_force, looked_s)
    write_whole(ground.ruleset, whole_text(table, elements))
    if in_force is not None and in_force.mark == rules_mark(table):
        nft("-f", "-", text=exchange_text(elements))
        return publish(ground, memory)
    nft("-f", "-", text=whole_text(table, elements))
    odd = publish(ground, memory)
    if in_force is None:
        return [*odd, "the table was gone (who flushed it? `flush ruleset` does); it is in force again"]
    return [*odd, "the rules themselves changed"]


def publish(
    ground: Ground, memory: Memory, in_force: InForce | None = None, looked_s: float | None = None
) -> list[str]:
    """The web service can read what the kernel lets it through to, as `in_force` was found at `looked_s` (monotonic), or now.

    Returns what was odd. No failure of it is one of the filter: the service then knows what its own lookups tell it.
    """
    if in_force is None or looked_s is None:
        looked_s = time.monotonic()
        in_force = table_in_force()
    try:
        if in_force is None:
            ground.published.unlink(missing_ok=True)
            return []
        # others than the service may run with any umask
        if not ground.runtime.is_dir():
            ground.runtime.mkdir(mode=0o755)
            ground.runtime.chmod(0o755)
        text = published_text(memory, in_force, looked_s, time.time() - (time.monotonic() - looked_s))
        # `load` holds no lock, so two may write at once
        write_whole(ground.published, text, mode=0o644, draft_name=str(os.getpid()))
    except OSError as error:
        return [f"{ground.published} can't be written ({error.strerror}); the service goes by its own lookups"]
    return []


def published_text(memory: Memory, in_force: InForce, looked_s: float, looked_at: float) -> str:
    """By name and port of the web service's places the addresses that the kernel has, the one answered last first, each with the
    time until which it has it: on the clock that the kernel's own timeouts follow, which nobody sets and a boot begins anew.
    `looked_at` is the same moment by the other clock.
    """
    held: dict[Place, list[tuple[str, int | None]]] = {}
    for place in (*memory.places, *memory.leaving):
        if (place.by, place.protocol) != ("web", "tcp"):
            continue
        members = {str(address): _member(place, address) for address in memory.addresses_of(place)}
        held[place] = [
            (text, None if (left_s := in_force.elements[member]) is None else int(looked_s) + left_s)
            for text, member in members.items()
            if member in in_force.elements
        ]
    text = ""
    # fewer of each where many names lead to very many
    for addresses_max in (ADDRESSES_MAX, 64, 16, 4):
        rows = [
            {"host": place.host, "port": place.port, "until_s": dict(until_s[:addresses_max])}
            for place, until_s in held.items()
        ]
        told = {"format": 1, "looked_s": int(looked_s), "looked_at": int(looked_at), "places": rows}
        text = json.dumps(told) + "\n"
        if len(text) <= PUBLISHED_BYTES_MAX:
            break
    return text


def show(ground: Ground, *, as_json: bool) -> int:
    """What is enforced. Exit status 1 when it should be, and is not."""
    memory, on = Memory.read(ground.memory), ground.ruleset.exists()
    in_force, now = table_in_force(), time.time()
    lately = [] if in_force is None else sorted(key for name, key in in_force.elements if name.startswith("lately"))
    told = {
        "on": on,
        "in_force": in_force is not None,
        "resolvers": [str(address) for address in read_resolvers(_resolv_conf(ground))],
        "stored_providers": memory.stored_providers,
        "list_age_s": round(now - memory.listed) if memory.listed else None,
        "refresh_age_s": round(now - memory.refreshed) if memory.refreshed else None,
        "places": [_told_place(place, memory, in_force) for place in (*memory.places, *memory.leaving)],
        "packets": {} if in_force is None else dict(in_force.counters),
        "refused_lately": [key.replace(" . ", " ") for key in lately],
    }
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write(_worded(told))
    return 0 if on == (in_force is not None) else 1


def remove(ground: Ground, *, dry_run: bool) -> None:
    """The filter is off, now and after a boot; nothing of it is left."""
    if dry_run:
        sys.stdout.write(f"delete table inet {TABLE}\n")
        return
    _switch_units(ground, "disable")
    _end_looks()
    # the demand first, then what meets it: killed in between, the web service still starts
    ground.drop_in.unlink(missing_ok=True)
    _reload_units()
    ground.ruleset.unlink(missing_ok=True)
    if table_in_force() is not None:
        nft("delete", "table", "inet", TABLE)
    if ground.runtime.is_dir():
        shutil.rmtree(ground.runtime)
    if ground.state.is_dir():
        shutil.rmtree(ground.state)
    report("off")


def _take_list(ground: Ground, memory: Memory, now: float) -> list[str]:
    """The newest list, if it can be read; else the last that could. It is empty while it is being made."""
    notes = []
    try:
        listed = ground.incoming.stat().st_mtime
        if listed != memory.listed and (text := ground.incoming.read_text("utf-8")):
            memory.list_anew(read_places(text, stored_providers=memory.stored_providers), now, listed)
    except (OSError, EgressError) as error:
        notes.append(f"the last good list of places stays: {error}")
    if now - memory.listed > LIST_OLD_S:
        age = round((now - memory.listed) / 60)
        notes.append(f"the list of places is {age} minutes old; see: journalctl -u {PLACES_UNIT} -n 20")
    return notes


def _table(ground: Ground, memory: Memory) -> str:
    speaks = any(place.by == "audit" and not _is_here(place) for place in (*memory.places, *memory.leaving))
    web = uid_of(WEB_USER)
    if web is None:
        raise EgressError(f"there is no user {WEB_USER} on this host; scripts/install makes it")
    return table_text(web, uid_of(AUDIT_USER), read_resolvers(_resolv_conf(ground)), audit_speaks=speaks)


def _is_here(place: Place) -> bool:
    literal = place.literal
    return place.host == "localhost" or (literal is not None and literal.is_loopback)


def uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _resolv_conf(ground: Ground) -> str:
    try:
        return ground.resolv_conf.read_text("utf-8", "replace")
    except OSError:
        return ""


def ask_for_places() -> None:
    """Raises `EgressError`. The unit runs the product's command as the product's user, with its secrets."""
    # A run that is under way may have read what has changed since: it is waited for, and then comes one of ours.
    if run("systemctl", "is-active", PLACES_UNIT).stdout.strip() == "activating":
        run("systemctl", "start", PLACES_UNIT)
    ended = run("systemctl", "start", PLACES_UNIT)
    if ended.returncode != 0:
        raise EgressError(f"{PLACES_UNIT} failed; see: journalctl -u {PLACES_UNIT} -n 20. {ended.stderr.strip()}")


def drop_in_text(allowed: Iterable[Address], ruleset: Path) -> str:
    """The web service waits for the filter. `allowed`: what its IPAddressDeny= would refuse although it is meant."""
    allow = " ".join(str(address) for address in allowed)
    lines = [
        "# Made by scripts/egress apply, taken away by scripts/egress remove.",
        "[Unit]",
        "Wants=secure-llm-egress-boot.service",
        "After=secure-llm-egress-boot.service",
        "",
        "[Service]",
        "# What the settings name is let through before the service asks it. No reason not to start, should it fail.",
        "ExecStartPre=+-/opt/secure_llm_proxy/scripts/egress load --fresh",
        "# Never without the filter, whatever release is in force: somebody may have flushed it.",
        f"ExecStartPre=+/bin/sh -c 'nft list chain inet {TABLE} output >/dev/null 2>&1 || exec nft -f {ruleset}'",
    ]
    if allow:
        lines.append("# A resolver or a provider there, by its address; the filter lets through its port alone.")
        lines.append(f"IPAddressAllow={allow}")
    return "\n".join(lines) + "\n"


def write_drop_in(ground: Ground, memory: Memory) -> None:
    """As the filter is now; systemd is told only when something changed."""
    if _is_stale(ground, memory):
        ground.drop_in.parent.mkdir(mode=0o755, exist_ok=True)
        write_whole(ground.drop_in, _wanted_drop_in(ground, memory), mode=0o644)
        _reload_units()


def _wanted_drop_in(ground: Ground, memory: Memory) -> str:
    meant = [*read_resolvers(_resolv_conf(ground)), *(place.literal for place in memory.places if place.by == "web")]
    allowed = sorted({address for address in meant if address is not None and is_never(address)}, key=str)
    return drop_in_text(allowed, ground.ruleset)


def _is_stale(ground: Ground, memory: Memory) -> bool:
    if not ground.units.is_dir():
        return False
    path = ground.drop_in
    return not path.is_file() or path.read_text("utf-8") != _wanted_drop_in(ground, memory)


def _switch_units(ground: Ground, how: str) -> None:
    installed = [unit for unit in UNITS if (ground.units / unit).is_file()]
    if installed and _SYSTEMD.is_dir():
        ended = run("systemctl", how, "--now", "--quiet", *installed)
        if ended.returncode != 0:
            complain(f"systemctl {how} failed: {ended.stderr.strip()}")


def _end_looks() -> None:
    """A look that is under way would find the filter gone, and its unit failed; one for places would write into a file that
    is gone.
    """
    if _SYSTEMD.is_dir():
        run("systemctl", "stop", *LOOKS)
        run("systemctl", "reset-failed", *LOOKS)


def _reload_units() -> None:
    if _SYSTEMD.is_dir():
        run("systemctl", "daemon-reload")


def _told_place(place: Place, memory: Memory, in_force: InForce | None) -> dict[str, object]:
    seen = memory.seen.get(place.host, Seen())
    addresses = sorted(memory.addresses_of(place), key=str)
    held = in_force.elements if in_force else {}
    return {
        "by": place.by,
        "place": str(place),
        "addresses": [str(address) for address in addresses],
        "in_force": all(_member(place, address) in held for address in addresses),
        "leaving": place in memory.leaving,
        "trouble": seen.trouble,
    }


def _worded(told: Mapping[str, Any]) -> str:
    state = (
        "on"
        if told["on"] and told["in_force"]
        else "OFF"
        if not told["on"] and not told["in_force"]
        else (
            "on, but NOT in force: the table is not in the kernel; start secure-llm-egress.service"
            if told["on"]
            else "in force, but not kept for the next boot: scripts/egress apply"
        )
    )
    lines = [f"egress filter: {state}", f"resolvers:     {', '.join(told['resolvers'])}"]
    if told["list_age_s"] is not None:
        lines.append(f"list:          {told['list_age_s']} s old; looked up {told['refresh_age_s']} s ago")
    if not told["stored_providers"]:
        lines.append("left out:      providers that only the database knows")
    for row in told["places"]:
        marks = [word for word, is_so in (("leaving", row["leaving"]), ("NOT in force", not row["in_force"])) if is_so]
        if row["trouble"]:
            marks.append(f"can't be looked up: {row['trouble']}")
        shown = ", ".join(row["addresses"]) or "no address known"
        lines.append(f"{row['by']:<6} {row['place']}  {shown}{'  ' + '; '.join(marks) if marks else ''}")
    if told["packets"]:
        lines.append("packets:       " + ", ".join(f"{name} {count}" for name, count in told["packets"].items()))
    lines += [f"refused within the last hour: {key}" for key in told["refused_lately"]]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- files and words


def write_whole(path: Path, text: str, *, mode: int = 0o600, draft_name: str = "new") -> None:
    """Killed at any moment, `path` is the old file or the new one."""
    draft = path.with_name(f".{path.name}.{draft_name}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode), "w") as file:
        # whatever the umask takes away
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _read(path: Path, otherwise: str) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise EgressError(f"{otherwise} ({error.strerror})") from None


def complain(sentence: str) -> None:
    sys.stderr.write(f"egress: {sentence}\n")


def report(sentence: str) -> None:
    """For the operator, and for the system's log, where a unit's standard error goes anyway."""
    complain(sentence)
    if "INVOCATION_ID" not in os.environ and Path("/dev/log").exists():
        syslog.openlog("secure-llm-egress")
        syslog.syslog(sentence)


def _tell(notes: list[str]) -> None:
    if notes:
        report("; ".join(notes))


def main() -> int:
    parser = argparse.ArgumentParser(prog="egress", description="See scripts/egress --help.")
    parser.add_argument("command", choices=("apply", "refresh", "publish", "show", "remove"))
    parser.add_argument("--places", type=Path)
    parser.add_argument("--stored-providers", action=argparse.BooleanOptionalAction)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    ground = Ground.of(os.environ)
    try:
        if asked.command == "show":
            return show(ground, as_json=asked.json)
        if asked.command == "apply":
            apply(ground, asked.places, stored_providers=asked.stored_providers, dry_run=asked.dry_run)
        elif asked.command == "refresh":
            refresh(ground, dry_run=asked.dry_run)
        elif asked.command == "publish":
            _tell(publish(ground, Memory.read(ground.memory)))
        else:
            remove(ground, dry_run=asked.dry_run)
    except EgressError as error:
        report(f"failed: {error}")
        return 1
    except OSError as error:
        report(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
