"""What remains and what must not run away: backups, kept checkpoints, logs, and the clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from secure_llm_proxy.cli.host import systemd
from secure_llm_proxy.cli.host.backups import BackupUnread, newest_backup
from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.places import Places

_BACKUP_HOURS = 26
_ANCHOR_HOURS = 3
_GIB = 1 << 30
_ROTATION = "etc/logrotate.d/secure_llm_proxy"


def backup_checks(places: Places) -> Iterator[Check]:
    recipient = places.settings / "backup-recipient"
    yield _recipient(recipient)
    fix = "secure-llm-backup; journalctl -u secure-llm-backup"
    try:
        newest = newest_backup(places.backups)
    except BackupUnread as error:
        yield failed("backup", f"the newest manifest cannot be read: {error}", fix)
        return
    if newest is None:
        yield failed("backup", f"there is none in {places.backups}", fix)
        return
    age_h = newest.age_h(datetime.now(UTC))
    told = f"{age_h:.1f} h old, {newest.files} files, {newest.size_bytes / _GIB:.2f} GiB"
    if newest.troubles:
        yield failed("backup", f"{told}: {'; '.join(newest.troubles[:3])}", fix)
    elif age_h > _BACKUP_HOURS:
        yield failed("backup", f"{told}; {_BACKUP_HOURS} h are the most", fix)
    else:
        yield ok("backup", told)
    yield _apart(places)


def _recipient(path: Path) -> Check:
    what = "backup recipient"
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return failed(what, f"there is no {path}", "run scripts/install again; keep the identity it shows offline")
    if any(line.startswith("AGE-SECRET-KEY-") for line in lines):
        return failed(what, f"{path} holds the private identity", "take it offline: only the line age1… belongs there")
    if not any(line.startswith(("age1", "ssh-")) for line in lines):
        return failed(what, f"{path} names no recipient", "write the line age1… of your backup identity into it")
    return ok(what, "the host can write backups and not read them")


def _apart(places: Places) -> Check:
    what = "backup, apart from the log"
    log, backups = places.audit_state.stat().st_dev, places.backups.stat().st_dev
    if log == backups:
        fix = f"mount another disk at {places.backups}, and copy it off this host; what lies there is encrypted"
        return warning(what, "both lie on one file system: who loses it loses both", fix)
    return ok(what, "on another file system; copy it off this host, too")


def anchor_checks(places: Places) -> Iterator[Check]:
    """Checkpoints that the audit writer's own user cannot take back. That they leave the host, too, doctor tells anyway."""
    kept = places.anchors / "anchors.jsonl"
    try:
        age_h = (datetime.now(UTC) - datetime.fromtimestamp(kept.stat().st_mtime, UTC)).total_seconds() / 3600
    except FileNotFoundError:
        yield warning(
            "kept anchors",
            f"there is no {kept}",
            "systemctl enable --now secure-llm-anchors.timer; now: systemctl start secure-llm-anchors",
        )
        return
    if age_h > _ANCHOR_HOURS:
        fix = "systemctl status secure-llm-anchors.timer secure-llm-anchors secure-llm-audit"
        yield warning("kept anchors", f"the newest is {age_h:.0f} h old", fix)
    else:
        yield ok("kept anchors", f"{kept}, the newest {age_h:.1f} h old")


def rotation_checks(places: Places) -> Iterator[Check]:
    what, path = "log rotation", places.machine / _ROTATION
    if not path.is_file():
        yield failed(what, f"there is no {path}", "install deploy/logrotate/secure_llm_proxy there: scripts/install")
        return
    status, said = systemd.run(["logrotate", "--debug", str(path)])
    if status == 127:  # noqa: PLR2004
        yield failed(what, "logrotate is not installed", "apt-get install logrotate")
        return
    if status or "error:" in said:
        first = next((line for line in said.splitlines() if "error:" in line), f"logrotate ends with {status}")
        yield failed(what, first, f"logrotate --debug {path}")
        return
    timer = systemd.show("logrotate.timer", "ActiveState").get("ActiveState")
    if timer != "active" and not (places.machine / "etc/cron.daily/logrotate").exists():
        yield failed(what, "nothing starts logrotate", "systemctl enable --now logrotate.timer")
        return
    yield ok(what, f"{path}, daily")


def clock_checks() -> Iterator[Check]:
    """Second factors, certificates and the order of evidence hang on the time."""
    what = "time synchronised"
    status, said = systemd.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if status == 0 and said.strip() in {"yes", "no"}:
        if said.strip() == "yes":
            yield ok(what, "yes")
        else:
            fix = "apt-get install systemd-timesyncd (or chrony); timedatectl set-ntp true"
            yield failed(what, "no", fix)
        return
    yield unknown(what, "timedatectl does not tell", "chronyc tracking, or ntpq -p")
