"""What this host lets in and out: listening ports, the firewall, and the filter of the service's own packets."""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secure_llm_proxy.cli.host import systemd
from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.places import Places
from secure_llm_proxy.cli.host.site import find_site
from secure_llm_proxy.cli.production.attempts import AS_ROOT

_LISTEN = "0A"
_SSH = 22
_NOT_THERE = 127
_EGRESS_TABLE = ("inet", "slp_egress")
_STOPS = frozenset({"drop", "reject"})


def port_checks(places: Places) -> Iterator[Check]:
    """TCP ports that listen beyond loopback: nginx's two and SSH are expected."""
    site = find_site(places.machine)
    expected = {_SSH} | {at[1] for at in (site and site.tls, site and site.plain) if at}
    found = sorted({(port, address) for address, port in listening(places.machine / "proc/net")})
    outside = [(port, address) for port, address in found if not ipaddress.ip_address(address).is_loopback]
    others = [(port, address) for port, address in outside if port not in expected]
    if others:
        shown = ", ".join(f"{address} port {port}" for port, address in others)
        fix = "bind it to 127.0.0.1, stop it, or keep it out by the firewall; who it is: ss -tlnp"
        yield warning("open ports", shown, fix)
    else:
        yield ok("open ports", ", ".join(str(port) for port in sorted({port for port, _ in outside})) or "none")


def listening(folder: Path) -> Iterator[tuple[str, int]]:
    """(address, port) of every listening TCP socket (proc(5)). Raises `OSError`."""
    for name in ("tcp", "tcp6"):
        path = folder / name
        if name == "tcp6" and not path.exists():
            continue
        for line in path.read_text("ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN:
                address, port = words[1].split(":")
                yield _address(address), int(port, 16)


def _address(text: str) -> str:
    """The kernel prints words of 32 bits in the machine's own order."""
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    found = ipaddress.ip_address(raw)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def firewall_checks() -> Iterator[Check]:
    """Both are read from the kernel's own rules, whoever made them (ufw, firewalld, nftables)."""
    what = "firewall"
    if os.geteuid() != 0:
        yield unknown(what, "only root may see the rules", AS_ROOT)
        yield unknown("egress filter", "only root may see the rules", AS_ROOT)
        return
    status, said = systemd.run(["nft", "-j", "list", "ruleset"])
    if status == _NOT_THERE:
        yield unknown(what, "nft is not installed", "apt-get install nftables")
        yield unknown("egress filter", "nft is not installed", "apt-get install nftables")
        return
    try:
        rules = json.loads(said)["nftables"]
    except (ValueError, KeyError):
        yield unknown(what, "nft does not list its rules", "run this on the host itself: nft list ruleset")
        yield unknown("egress filter", "nft does not list its rules", "run this on the host itself: nft list ruleset")
        return
    yield firewall_in(rules)
    yield egress_in(rules)


def firewall_in(rules: list[dict[str, Any]]) -> Check:
    """Whether a chain at the input hook turns away what no rule lets in."""
    closing = [f"{chain['family']} {chain['table']} {chain['name']}" for chain in _closing(rules, "input")]
    if closing:
        return ok("firewall", f"active: {', '.join(closing)}")
    fix = "let in SSH, 80 and 443 and nothing else: /opt/secure_llm_proxy/scripts/firewall apply --others drop; docs/egress.md"
    return failed("firewall", "nothing turns away what comes in", fix)


def egress_in(rules: list[dict[str, Any]]) -> Check:
    if any((chain["family"], chain["table"]) == _EGRESS_TABLE for chain in _closing(rules, "output")):
        return ok("egress filter", "loaded: the services reach their providers and nobody else")
    fix = "turn it on: /opt/secure_llm_proxy/scripts/egress apply; docs/egress.md"
    return failed("egress filter", "not loaded: a service that was taken over reaches everybody", fix)


def _closing(rules: list[dict[str, Any]], hook: str) -> Iterator[dict[str, Any]]:
    """Chains at `hook` that drop by policy, or by a rule in the chain or in one of its table that they lead to."""
    stopping = {
        (rule["family"], rule["table"], rule["chain"])
        for each in rules
        if (rule := each.get("rule")) and any(_STOPS & set(part) for part in rule.get("expr", []))
    }
    leads: dict[tuple[str, str, str], set[str]] = {}
    for each in rules:
        rule = each.get("rule", {})
        for part in rule.get("expr", []):
            for kind in ("jump", "goto"):
                if kind in part:
                    leads.setdefault((rule["family"], rule["table"], rule["chain"]), set()).add(part[kind]["target"])
    for each in rules:
        chain = each.get("chain")
        if not chain or chain.get("hook") != hook:
            continue
        seen: set[str] = set()
        ahead = [chain["name"]]
        while ahead:
            name = ahead.pop()
            if name not in seen:
                seen.add(name)
                ahead += leads.get((chain["family"], chain["table"], name), set())
        if chain.get("policy") == "drop" or any((chain["family"], chain["table"], name) in stopping for name in seen):
            yield chain
