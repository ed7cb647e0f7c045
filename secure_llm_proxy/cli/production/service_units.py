"""systemd's units: there, running, started at boot, and shut in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from secure_llm_proxy.cli.host import systemd
from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.places import AUDIT_UNIT, WEB_SOCKET_UNIT, WEB_UNIT

_TIMERS = ("backup", "health", "daily-check", "cleanup", "anchors", "certificates")
_ENABLED = frozenset({"enabled", "enabled-runtime", "static", "linked", "alias", "indirect", "generated"})
_EXPOSURE = re.compile(r"Overall exposure level for \S+: ([0-9]+(?:\.[0-9]+)?)")
_EXPOSURE_MOST = 2.0
NEEDED = (WEB_UNIT, WEB_SOCKET_UNIT, AUDIT_UNIT, "nginx.service")


def unit_checks() -> Iterator[Check]:
    if not systemd.is_here():
        yield unknown("units", "systemd does not run this machine", "look at the processes another way")
        return
    for unit in NEEDED:
        yield _unit(unit, needed=True)
    for name in _TIMERS:
        yield _unit(f"secure-llm-{name}.timer", needed=False)
    shut_in = [WEB_UNIT, AUDIT_UNIT]
    shut_in += [name for name, _, _ in systemd.units_like("secure-llm-*.service") if name != AUDIT_UNIT]
    # A service that a timer starts is loaded as long as its timer is.
    shut_in += [f"secure-llm-{name}.service" for name in _TIMERS if f"secure-llm-{name}.service" not in shut_in]
    yield from _exposures(shut_in)


def _unit(unit: str, *, needed: bool) -> Check:
    what = f"unit {unit}"
    told = systemd.show(unit, "LoadState", "ActiveState", "UnitFileState")
    if not told:
        return unknown(what, "the service manager does not answer", "run this as root")
    judge = failed if needed else warning
    if told.get("LoadState") == "not-found":
        return judge(what, "is not installed", "run scripts/install again")
    active, enabled = told.get("ActiveState", ""), told.get("UnitFileState", "")
    if active not in {"active", "reloading", "refreshing"}:
        return judge(what, active, f"systemctl enable --now {unit}; journalctl -u {unit} -n 50")
    if enabled not in _ENABLED:
        return judge(what, f"active, but {enabled or 'not enabled'}: not started at boot", f"systemctl enable {unit}")
    return ok(what, f"active, {enabled}")


def _exposures(units: list[str]) -> Iterator[Check]:
    within: list[str] = []
    for unit in units:
        told = systemd.show(unit, "LoadState")
        if told.get("LoadState") != "loaded":
            continue
        status, said = systemd.run(["systemd-analyze", "security", "--no-pager", unit], timeout_s=60)
        found = _EXPOSURE.search(said)
        if found is None:
            why = "systemd-analyze is not there" if status == 127 else "systemd-analyze does not tell"  # noqa: PLR2004
            yield unknown(f"sandbox of {unit}", why, "run this as root, on the host itself")
        elif float(found.group(1)) > _EXPOSURE_MOST:
            fix = f"remove the drop-in that opens it (systemctl cat {unit}), or install the unit again"
            yield failed(f"sandbox of {unit}", f"exposure {found.group(1)}, at most {_EXPOSURE_MOST}", fix)
        else:
            within.append(f"{unit.removesuffix('.service')} {found.group(1)}")
    if within:
        yield ok("sandboxes", f"exposure {', '.join(within)}")
