"""`scripts/daily_check`: what a person should look at once a day. 0 all well, 1 worth a look, 2 wrong."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from secure_llm_proxy.cli.host.audit_log import AuditPlaces, audit_check
from secure_llm_proxy.cli.host.backups import BackupUnread, newest_backup
from secure_llm_proxy.cli.host.check import (
    Check,
    Level,
    as_json,
    as_table,
    counted,
    failed,
    judged,
    unknown,
    warning,
)
from secure_llm_proxy.cli.host.database_size import size_check
from secure_llm_proxy.cli.host.disks import disk_checks
from secure_llm_proxy.cli.host.growth import growth_check, sizes_of
from secure_llm_proxy.cli.host.memory import recall, remember
from secure_llm_proxy.cli.host.places import Places, embedded_settings, places_of, variables_in
from secure_llm_proxy.cli.host.served import CertificateUnread, certificate_in, days_left, handshake
from secure_llm_proxy.cli.host.site import Site, find_site
from secure_llm_proxy.cli.host.traffic import login_check, traffic_checks

_DAY = timedelta(days=1)
_GIB = 1 << 30
_WORDS = {0: "all well", 1: "worth a look", 2: "wrong"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    places, root = places_of(), Path(options.root)
    installed = places.is_installed and not (root / "instance").is_dir()
    checks, remembered = look(options, places, root, installed=installed)
    levels = {check.level for check in checks}
    status = 2 if Level.FAILED in levels else 1 if levels & {Level.WARNING, Level.UNKNOWN} else 0
    if options.state is not None:
        try:
            remember(options.state, remembered)
        except OSError as error:
            print(
                f"daily_check: {options.state} cannot be written ({error.strerror}); growth is not told",
                file=sys.stderr,
            )
    print(as_json(checks, status=_WORDS[status]) if options.json else as_table(checks))
    if options.summary is not None:
        counts = counted(checks)
        wrong = "; ".join(f"{check.what}: {check.found}" for check in checks if check.level is not Level.OK)
        options.summary.write_text(
            f"{_WORDS[status]} ({counts[Level.OK]} of {len(checks)} ok){wrong and ': '}{wrong}\n", "utf-8"
        )
    return status


def look(
    options: argparse.Namespace, places: Places, root: Path, *, installed: bool
) -> tuple[list[Check], dict[str, Any]]:
    """Every check, and what to remember for tomorrow."""
    before = recall(options.state)
    now, since = time.time(), datetime.now(UTC) - _DAY
    instance = _Instance(places, root, installed=installed)
    checks = disk_checks(instance.disks(), warning_from=options.disk_warning, failed_from=options.disk_failed)
    site, checks_of_site = _site(places, installed=installed)
    checks += checks_of_site
    if installed:
        checks.append(_certificate(site, options))
    sizes, unseen = sizes_of(instance.logs(site))
    apart_s = now - before.get("at", now)
    checks.append(
        growth_check(sizes, before.get("logs"), apart_s=apart_s, warning_mib=options.log_growth_warning, unseen=unseen)
    )
    if installed or places.backups.is_dir():
        checks.append(_backup(places, options))
    audit = before.get("audit")
    if not options.no_audit:
        check, kept = audit_check(
            instance.audit(), audit, whole_up_to_gib=options.audit_whole_gib, whole=options.audit_whole
        )
        checks.append(check)
        audit = kept or audit
    checks.append(
        login_check(
            instance.app_log(),
            since,
            warning_from=options.failed_logins_warning,
            failed_from=options.failed_logins_failed,
        )
    )
    if site is not None and site.access_log is not None:
        checks += traffic_checks(
            site.access_log,
            since,
            client_warning=options.client_errors_warning,
            server_warning=options.server_errors_warning,
            server_failed=options.server_errors_failed,
        )
    check, size = size_check(instance.database_url(), before.get("database"), warning_mib=options.database_warning)
    checks.append(check)
    return checks, {"at": now, "logs": sizes, "audit": audit, "database": size}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="daily_check", add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    for name, default in (
        ("--disk-warning", 80),
        ("--disk-failed", 92),
        ("--certificate-warning", 21),
        ("--certificate-failed", 7),
        ("--backup-warning", 26),
        ("--backup-failed", 50),
        ("--log-growth-warning", 2048),
        ("--failed-logins-warning", 50),
        ("--failed-logins-failed", 1000),
        ("--client-errors-warning", 25),
        ("--server-errors-warning", 1),
        ("--server-errors-failed", 10),
        ("--database-warning", 0),
        ("--audit-whole-gib", 8),
    ):
        parser.add_argument(name, type=float, default=float(default))
    parser.add_argument("--audit-whole", action="store_true")
    parser.add_argument("--no-audit", action="store_true")
    state = os.environ.get("STATE_DIRECTORY")
    parser.add_argument("--state", type=Path, default=Path(state) if state else None)
    parser.add_argument("--root", default=".", help=argparse.SUPPRESS)
    parser.add_argument("--summary", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.state is not None and not options.state.is_dir():
        parser.error(f"--state {options.state}: there is no such folder")
    return options


class _Instance:
    """Where this host, or this clone, has what is looked at."""

    def __init__(self, places: Places, root: Path, *, installed: bool) -> None:
        self._places = places
        self._installed = installed
        self._root = root
        self._settings = self._read(places.settings / "env") if installed else embedded_settings(root)
        self._audit = self._read(places.settings / "audit.env") if installed else self._settings
        folder = root / (self._settings.get("INSTANCE_DIR") or "instance")
        self._instance = places.state if installed else folder

    def disks(self) -> list[tuple[str, Path]]:
        places = self._places
        if not self._installed:
            return [("instance", self._instance), ("audit log", self.audit().directory)]
        machine = places.machine
        return [
            ("system", machine),
            ("var", machine / "var"),
            ("tmp", machine / "tmp"),
            ("audit log", places.audit_state),
            ("state", places.state),
            ("logs", places.logs),
            ("journal", machine / "var/log/journal"),
            ("backups", places.backups),
            ("database", machine / "var/lib/postgresql"),
            ("redis", machine / "var/lib/redis"),
        ]

    def logs(self, site: Site | None) -> list[Path]:
        own = self._places.logs if self._installed else self._log_folder()
        beside = [site.access_log.parent] if site is not None and site.access_log is not None else []
        return [own, *(folder for folder in beside if folder != own)]

    def app_log(self) -> Path:
        return self._log_folder() / "app.jsonl"

    def audit(self) -> AuditPlaces:
        default = self._places.audit_state / "segments" if self._installed else self._instance / "audit"
        directory = self._root / (self._audit.get("AUDIT_DIR") or default)
        also = self._audit.get("AUDIT_FALLBACK_DIR")
        anchors = [self._places.anchors / "anchors.jsonl"] if self._installed else []
        if own := self._audit.get("AUDIT_ANCHOR_FILE"):
            anchors.append(Path(own))
        return AuditPlaces(
            directory,
            host_id=self._audit.get("AUDIT_HOST_ID", ""),
            also=Path(also) if also else None,
            anchors=tuple(anchors),
            owner_public_key=self._owner_public_key(),
        )

    def database_url(self) -> str | None:
        for folder in (
            os.environ.get("CREDENTIALS_DIRECTORY"),
            self._places.settings / "credentials" if self._installed else None,
        ):
            for name in ("database_url", "credentials_database_url"):
                try:
                    return (Path(folder or "/nonexistent") / name).read_text("utf-8").strip()
                except OSError:
                    continue
        given = self._settings.get("DATABASE_URL")
        if given or self._installed:
            return given
        return f"sqlite:///{(self._instance / 'app.db').absolute()}"

    def _log_folder(self) -> Path:
        default = self._places.logs if self._installed else self._instance / "log"
        return Path(self._settings.get("LOG_DIR") or default)

    def _owner_public_key(self) -> str | None:
        try:
            return (self._places.settings / "owner-public-key").read_text("ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    @staticmethod
    def _read(path: Path) -> Mapping[str, str]:
        try:
            return variables_in(path)
        except OSError:
            return {}


def _site(places: Places, *, installed: bool) -> tuple[Site | None, list[Check]]:
    if not installed:
        return None, []
    try:
        site = find_site(places.machine)
    except OSError as error:
        return None, [unknown("nginx's site", f"{error.filename}: {error.strerror}", "run this as root")]
    if site is None:
        return None, [warning("nginx's site", "there is none in /etc/nginx", "run scripts/install again")]
    if site.access_log is None:
        return site, [warning("requests", f"{site.path} keeps no access log", "run scripts/install again")]
    return site, []


def _certificate(site: Site | None, options: argparse.Namespace) -> Check:
    """The one that clients see; where nobody listens, the one in the file."""
    if site is None or site.tls is None:
        return unknown("certificate", "nginx has no site of ours", "run scripts/install again")
    try:
        days = handshake(*site.tls, site.name).days_left
    except (OSError, CertificateUnread):
        if site.certificate is None:
            return failed("certificate", f"no handshake at {site.tls[0]}:{site.tls[1]}", "systemctl status nginx")
        try:
            days = days_left(certificate_in(site.certificate))
        except PermissionError:
            return unknown("certificate", f"{site.certificate} may not be read by this user", "run this as root")
        except (OSError, CertificateUnread) as error:
            return failed("certificate", f"{site.certificate}: {error}", "give nginx a certificate")
    fix = "renew it (certbot renew, or a new file), then systemctl reload nginx"
    return judged(
        "certificate",
        -days,
        f"{days:.0f} days left",
        fix,
        warning_from=-options.certificate_warning,
        failed_from=-options.certificate_failed,
    )


def _installed_h(places: Places) -> float:
    """Hours since this host got what backups are encrypted to; infinite where it has not."""
    try:
        return (time.time() - (places.settings / "backup-recipient").stat().st_mtime) / 3600
    except OSError:
        return float("inf")


def _backup(places: Places, options: argparse.Namespace) -> Check:
    fix = "secure-llm-backup; journalctl -u secure-llm-backup"
    try:
        newest = newest_backup(places.backups)
    except PermissionError:
        return unknown("backup", f"{places.backups} may not be looked at by this user", "run this as root")
    except BackupUnread as error:
        return failed("backup", f"the newest manifest cannot be read: {error}", fix)
    if newest is None:
        # The first night after the installation is still to come.
        judge = warning if _installed_h(places) < options.backup_warning else failed
        return judge("backup", f"there is none in {places.backups}", fix)
    age_h = newest.age_h(datetime.now(UTC))
    told = f"{age_h:.1f} h old, {newest.files} files, {newest.size_bytes / _GIB:.2f} GiB"
    if newest.troubles:
        return failed("backup", f"{told}: {'; '.join(newest.troubles[:3])}", fix)
    return judged("backup", age_h, told, fix, warning_from=options.backup_warning, failed_from=options.backup_failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:  # noqa: BLE001  told whole
        # A defect of ours must not read as "worth a look".
        traceback.print_exc()
        sys.exit(2)
