"""`scripts/health_check`: is the product well, now? 0 healthy, 1 degraded, 2 down.

Down is what turns requests away: nobody answers, or a part that every request needs is gone, or clients refuse the
certificate. Everything else that is not as it should be is degraded.
"""

from __future__ import annotations

import argparse
import ssl
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from secure_llm_proxy.cli.host import systemd
from secure_llm_proxy.cli.host.ask import Door, NotAnswered, ask, door_at
from secure_llm_proxy.cli.host.check import Check, Level, as_json, as_table, counted, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.disks import disk_checks
from secure_llm_proxy.cli.host.places import AUDIT_UNIT, WEB_SOCKET_UNIT, WEB_UNIT, Places, embedded_settings, places_of
from secure_llm_proxy.cli.host.served import CertificateUnread, handshake
from secure_llm_proxy.cli.host.site import Site, find_site

# Without one of these new requests are refused; without the others they are served, with less around them.
_NEEDED = frozenset({"database", "audit", "disk"})
_READY, _NOT_READY = 200, 503
_WORDS = {0: "healthy", 1: "degraded", 2: "down"}
_SERVERS = ("nginx.service", "redis-server.service", "postgresql@*.service")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    places = places_of()
    root = Path(options.root)
    installed = places.is_installed and not (root / "instance").is_dir()
    try:
        site = find_site(places.machine) if installed else None
    except OSError:
        site = None
    checks = list(_answers(options, places, root, site, installed=installed))
    if installed:
        checks += _units()
    if site is not None and site.tls is not None and not options.url:
        checks.append(_certificate(site, options))
    checks += disk_checks(_disks(places, root, installed=installed), warning_from=options.disk_warning, failed_from=101)
    status = status_of(checks)
    counts = counted(checks)
    if options.json:
        print(as_json(checks, status=_WORDS[status]))
    else:
        shown = [check for check in checks if check.level is not Level.OK] if options.brief else checks
        if shown:
            print(as_table(shown))
    wrong = "; ".join(
        f"{check.what}: {check.found}" for check in checks if check.level in {Level.FAILED, Level.WARNING}
    )
    unseen = f", {counts[Level.UNKNOWN]} not to be seen" if counts[Level.UNKNOWN] else ""
    _hand_over(options, f"{_WORDS[status]}: {wrong or 'all is well'}{unseen}")
    return status


def status_of(checks: Sequence[Check]) -> int:
    levels = {check.level for check in checks}
    return 2 if Level.FAILED in levels else 1 if Level.WARNING in levels else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="health_check", add_help=False, allow_abbrev=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", default="")
    where.add_argument("--socket", type=Path)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--disk-warning", type=float, default=85.0)
    parser.add_argument("--certificate-days", type=float, default=21.0)
    parser.add_argument("--root", default=".", help=argparse.SUPPRESS)
    parser.add_argument("--summary", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.url:
        try:
            door_at(options.url)
        except ValueError as error:
            parser.error(str(error))
    if options.timeout <= 0:
        parser.error("--timeout must be more than 0 seconds")
    if options.ca is not None and not options.ca.is_file():
        parser.error(f"--ca {options.ca}: there is no such file")
    return options


def _hand_over(options: argparse.Namespace, line: str) -> None:
    """The line for the system log, to the script that writes it."""
    if options.summary is not None:
        options.summary.write_text(line + "\n", encoding="utf-8")


# --- the product itself -----------------------------------------------------------------------------------------------


def _answers(
    options: argparse.Namespace, places: Places, root: Path, site: Site | None, *, installed: bool
) -> Iterator[Check]:
    refused = None
    for door in _doors(options, places, root, site, installed=installed):
        try:
            status, told = ask(door, "/health/ready", timeout_s=options.timeout)
        except PermissionError:
            refused = door
            continue
        except NotAnswered as error:
            yield failed(
                "web service",
                f"{door.shown}: {error}",
                "see: systemctl status secure_llm_proxy nginx" if installed else "start it: scripts/run",
            )
            return
        except (OSError, ssl.SSLError) as error:
            yield failed("web service", f"{door.shown}: {error}", "give --ca a file of certificate authorities (PEM)")
            return
        doctor = "secure-llm-proxy doctor" if installed else "manage.py doctor"
        yield from _told(door, status, told, options.timeout, doctor)
        return
    shown = refused.shown if refused else "nowhere"
    yield failed(
        "web service",
        f"this user may not ask it ({shown})",
        "run this as root or a member of www-data, or give --url https://NAME",
    )


def _doors(
    options: argparse.Namespace, places: Places, root: Path, site: Site | None, *, installed: bool
) -> Iterator[Door]:
    """Those to try, one after the other, while this user may not knock."""
    name = site.name if site is not None else "localhost"
    if options.url:
        yield door_at(options.url, authority=options.ca)
        return
    if options.socket is not None:
        yield Door(f"unix:{options.socket}", socket=options.socket, host=name)
        return
    if not installed:
        yield _embedded_door(root)
        return
    yield Door(f"unix:{places.web_socket}", socket=places.web_socket, host=name)
    if site is not None and site.tls is not None:
        # On this machine, whoever signed its certificate: that clients trust it, --url shows.
        yield replace(
            door_at(f"https://{name}", verify=False), connect=site.tls, shown=f"nginx at {site.tls[0]}:{site.tls[1]}"
        )


def _embedded_door(root: Path) -> Door:
    settings = embedded_settings(root)
    bind = settings.get("BIND", "")
    if bind.startswith("unix:"):
        path = Path(bind.removeprefix("unix:"))
        return Door(bind, socket=path)
    host = settings.get("HOST") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  where it listens to everybody, it listens here
    port = settings.get("PORT") or "5000"
    at = f"[{host}]" if ":" in host else host
    return Door(f"http://{at}:{port}", url=f"http://{at}:{port}", connect=(host, int(port) if port.isdigit() else 5000))


def _told(door: Door, status: int, told: dict[str, Any], timeout_s: float, doctor: str) -> Iterator[Check]:
    dependencies = told.get("dependencies")
    if status not in {_READY, _NOT_READY} or not isinstance(dependencies, dict):
        code = told.get("error", {}).get("code") if isinstance(told.get("error"), dict) else None
        yield failed(
            "web service",
            f"{door.shown} answers {status}{f' {code}' if code else ''}, and not of its health",
            "is this the product's address? see: systemctl status secure_llm_proxy",
        )
        return
    yield ok("web service", f"answers at {door.shown}")
    reasons = _reasons(door, timeout_s)
    for name, state in sorted(dependencies.items()):
        if state == "ok":
            yield ok(name, "ok")
            continue
        found = str(reasons.get(name) or state)
        fix = f"see: {doctor}"
        yield (failed if name in _NEEDED else warning)(name, found, fix)
    providers = told.get("providers")
    for name, state in sorted(providers.items() if isinstance(providers, dict) else ()):
        if state == "ok":
            yield ok(f"provider {name}", "ok")
        else:
            yield warning(f"provider {name}", str(state), f"see: manage.py providers test {name}")


def _reasons(door: Door, timeout_s: float) -> Mapping[str, object]:
    """Why something is unavailable; only the inside is told."""
    try:
        status, told = ask(door, "/security/status", timeout_s=timeout_s)
    except (OSError, NotAnswered):
        return {}
    troubles = told.get("troubles")
    return troubles if status == _READY and isinstance(troubles, dict) else {}


# --- what it stands on ------------------------------------------------------------------------------------------------


def _units() -> Iterator[Check]:
    if not systemd.is_here():
        yield unknown("units", "systemd does not run this machine", "look at the processes another way")
        return
    for unit in (WEB_UNIT, WEB_SOCKET_UNIT, AUDIT_UNIT):
        told = systemd.show(unit, "LoadState", "ActiveState", "SubState")
        if not told:
            yield unknown(f"unit {unit}", "the service manager does not answer this user", "run this as root")
            return
        if told.get("LoadState") == "not-found":
            yield failed(f"unit {unit}", "is not installed", "run scripts/install again")
        elif told.get("ActiveState") in {"active", "reloading", "refreshing"}:
            yield ok(f"unit {unit}", f"active ({told.get('SubState')})")
        else:
            found = f"{told.get('ActiveState')} ({told.get('SubState')})"
            yield failed(f"unit {unit}", found, f"systemctl start {unit}; journalctl -u {unit} -n 50")
    for name, active, sub in systemd.units_like(*_SERVERS):
        if active in {"active", "reloading", "refreshing"}:
            yield ok(f"unit {name}", f"active ({sub})")
        else:
            yield warning(f"unit {name}", f"{active} ({sub})", f"systemctl start {name}; journalctl -u {name} -n 50")
    for name, active, sub in systemd.units_like("secure-llm-*.timer", "secure-llm-*.service"):
        if name == AUDIT_UNIT or name.startswith("secure-llm-health."):
            continue
        if active == "failed":
            yield warning(f"unit {name}", "failed the last time", f"journalctl -u {name} -n 50")
        elif name.endswith(".timer") and active != "active":
            yield warning(f"unit {name}", f"{active} ({sub})", f"systemctl enable --now {name}")


def _certificate(site: Site, options: argparse.Namespace) -> Check:
    assert site.tls is not None
    host, port = site.tls
    try:
        days = handshake(host, port, site.name, timeout_s=options.timeout).days_left
    except (OSError, CertificateUnread) as error:
        return failed("certificate", f"no handshake at {host}:{port}: {error}", "nginx -t; systemctl status nginx")
    if days < 0:
        return failed(
            "certificate", f"ended {-days:.0f} days ago", "renew it (certbot renew), then systemctl reload nginx"
        )
    if days < options.certificate_days:
        fix = "renew it (certbot renew), then systemctl reload nginx"
        return warning("certificate", f"{days:.0f} days left", fix)
    return ok("certificate", f"{days:.0f} days left")


def _disks(places: Places, root: Path, *, installed: bool) -> list[tuple[str, Path]]:
    if not installed:
        instance = Path(embedded_settings(root).get("INSTANCE_DIR") or "instance")
        return [("instance", root / instance)]
    return [
        ("audit log", places.audit_state),
        ("state", places.state),
        ("logs", places.logs),
        ("backups", places.backups),
        ("database", places.machine / "var/lib/postgresql"),
        ("system", places.machine),
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:  # noqa: BLE001  told whole
        # A defect of ours must not read as "degraded".
        traceback.print_exc()
        sys.exit(2)
