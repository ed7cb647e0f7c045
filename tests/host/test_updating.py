"""scripts/update on an installed host: another release in force without a lost request, and the old one back when it must be.

One machine, on which each test leaves a release in force that serves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.debian_machine import DebianMachine
from tests.support.debian_roots import ROOT
from tests.support.host_world import World
from tests.support.installed_host import AUDIT, WEB, InstalledHost, install
from tests.support.steady_load import Outcome, SteadyLoad

# The tree under test and one migration more than any older one has.
_NEWER = "/srv/newer"
_RELEASES = "/opt/secure_llm_proxy.releases"
_UPDATE_PATIENCE_S = 600.0
_STREAM_PAUSE_S = 1.0
# Together within what nginx and the product allow one client.
_PAUSE_S = 0.05
_BROKEN = {
    "its application does not start": ("app.py", "try:", "raise RuntimeError('broken release')\ntry:"),
    "it is never ready": (
        "secure_llm_proxy/web/operations/views.py",
        "good = all(",
        "good = False and all(",
    ),
    "its migration fails": ("migrations/versions/9999_broken.py", "", ""),
    "it refuses the host's settings": (
        "secure_llm_proxy/settings/loading.py",
        "_LOOPBACK = ",
        "raise RuntimeError('broken release')\n_LOOPBACK = ",
    ),
}
_MORE = """
import sqlalchemy as sa
from alembic import op

revision = "8000"
down_revision = "{newest}"
branch_labels = None
depends_on = None

def upgrade() -> None:
    op.create_table("of_the_newer_release", sa.Column("number", sa.Integer(), primary_key=True))

def downgrade() -> None:
    op.drop_table("of_the_newer_release")
"""
_MIGRATION = """
revision: str = "9999"
down_revision: str | None = "{newest}"
branch_labels = None
depends_on = None

def upgrade() -> None:
    {upgrade}

def downgrade() -> None:
    pass
"""
# Its standby starts, itself it does not; by then somebody has changed another site of this nginx.
_FAILS_AT_LAST = """
case $1 in *standby*) exit 0 ;; esac
grep -q changed /etc/nginx/conf.d/other.conf || echo "# changed meanwhile" >>/etc/nginx/conf.d/other.conf
exit 1
"""
_OTHER_SITE = "server { listen 127.0.0.1:8099; return 200 other; }\n"


@pytest.fixture(scope="module")
def updated(
    machines: Callable[[str], DebianMachine], world: World, tmp_path_factory: pytest.TempPathFactory
) -> InstalledHost:
    """A machine with an older release in force, its database, a client's key, and the newer release in a folder of its own."""
    machine = machines("updated.example.test")
    _lay_older(machine.files / "srv" / "older")
    machine.run("cp", "-a", "/src", _NEWER)
    newest = _newest_migration(ROOT)
    (_newer(machine) / "migrations/versions/8000_more.py").write_text(_MORE.format(newest=newest), "utf-8")
    folder = tmp_path_factory.mktemp("updated")
    host = install(machine, world, folder, domain="updated.example.test", source="/srv/older")
    (machine.files / "srv" / "older-name").write_text(_in_force(host))
    assert host.chat().status == 200
    return host


def test_an_older_release_is_updated_and_gone_back_to_under_load(updated: InstalledHost) -> None:
    _go_back_to_the_older(updated)
    older, exchange = _in_force(updated), updated.chat().headers["x-request-id"]

    _keep_the_hours_backup_away(updated)
    with _load(updated) as on_the_way:
        there = _update(updated, _NEWER)
    newer = _in_force(updated)
    schema = updated.manage("db", "current").stdout.strip()

    assert there.returncode == 0, there.stderr
    assert on_the_way.failed == []
    assert newer != older
    assert _releases_that_run(updated) == {newer}
    assert schema == _newest_migration(_newer(updated.machine))
    assert updated.chat().status == 200
    assert exchange in updated.manage("audit", "cat").stdout
    assert updated.manage("audit", "verify", check=False).returncode in {0, 3}

    with _load(updated) as on_the_way_back:
        back = _run(updated, "secure-llm-update", "--roll-back", "--skip-backup")

    assert back.returncode == 0, back.stderr
    assert on_the_way_back.failed == []
    assert _in_force(updated) == older
    assert _releases_that_run(updated) == {older}
    assert f"stays at revision {schema}, which is newer than {older}" in back.stderr

    _keep_the_hours_backup_away(updated)
    with_database = _run(updated, f"{_RELEASES}/{newer}/scripts/update", "--roll-back", "--with-database")

    assert with_database.returncode == 0, with_database.stderr
    assert updated.manage("db", "current").stdout.strip() == _newest_migration(updated.machine.files / "srv/older")
    assert updated.chat().status == 200


@pytest.mark.parametrize("what", _BROKEN)
def test_a_broken_release_leaves_the_old_one_in_force_and_costs_no_request(updated: InstalledHost, what: str) -> None:
    before = _in_force(updated)
    source = _lay_broken(updated.machine, what)

    with _load(updated) as outcome:
        done = _update(updated, source, "--skip-backup")

    assert done.returncode == 1, done.stderr
    assert outcome.failed == []
    assert outcome.stopped == 0
    assert _in_force(updated) == before
    assert _releases_that_run(updated) == {before}
    assert updated.machine.run("systemctl", "is-active", "secure_llm_proxy-standby.service", check=False).returncode
    assert updated.chat().status == 200


def test_an_update_that_fails_when_all_is_in_place_takes_back_what_is_its_own_and_no_more(
    updated: InstalledHost,
) -> None:
    machine = updated.machine
    assert _update(updated, _NEWER, "--skip-backup").returncode == 0
    (machine.files / "etc/nginx/conf.d/other.conf").write_text(_OTHER_SITE)
    machine.run("systemctl", "reload", "nginx")
    before, nginx_before = _in_force(updated), _nginx_files(updated)
    back_before = _run(updated, "secure-llm-update", "--roll-back", "--dry-run", "--skip-backup")

    with _load(updated) as outcome:
        failed = _update(updated, _lay_one_that_fails_at_last(machine), "--skip-backup")
    back_after = _run(updated, "secure-llm-update", "--roll-back", "--dry-run", "--skip-backup")

    assert failed.returncode == 1, failed.stderr
    assert "the web service of" in failed.stderr
    assert "put the nginx site back as it was" in failed.stderr
    assert (outcome.failed, outcome.stopped) == ([], 0)
    assert _in_force(updated) == before
    assert _releases_that_run(updated) == {before}
    assert _nginx_files(updated) == nginx_before
    assert machine.told("cat", "/etc/nginx/conf.d/other.conf") == f"{_OTHER_SITE}# changed meanwhile"
    assert machine.told("curl", "-s", "http://127.0.0.1:8099/") == "other"
    assert (back_after.returncode, back_after.stderr) == (back_before.returncode, back_before.stderr)

    # As it says itself, since the commands of the release in force refuse to work with a newer schema.
    assert updated.manage("list-users", check=False).returncode == 1
    [schema_back] = [line.rpartition(": ")[2] for line in failed.stderr.splitlines() if "take the schema back" in line]
    taken_back = _run(updated, *schema_back.split())
    machine.run("rm", "/etc/nginx/conf.d/other.conf")
    machine.run("systemctl", "reload", "nginx")

    assert taken_back.returncode == 0, taken_back.stderr
    assert _in_force(updated) == before
    assert updated.manage("db", "current").stdout.strip() == _newest_migration(_newer(machine))
    assert updated.manage("list-users").returncode == 0


@pytest.mark.parametrize("last_words", ["== let ", "== restart the web service"])
def test_an_update_that_is_killed_is_repaired_by_the_next(updated: InstalledHost, last_words: str) -> None:
    _go_back_to_the_older(updated)
    older = _in_force(updated)
    # What it says next meets a closed pipe, and kills it.
    script = f"{_NEWER}/scripts/update --offline /wheels --skip-backup 2>&1 | sed '/^{last_words}/q'"

    with _load(updated) as outcome:
        killed = _run(updated, "sh", "-c", script)
        again = _update(updated, _NEWER, "--skip-backup")

    assert last_words in killed.stdout
    assert again.returncode == 0, again.stderr
    assert "was interrupted at: " in again.stderr
    assert outcome.failed == []
    assert _in_force(updated) != older
    assert _releases_that_run(updated) == {_in_force(updated)}
    assert updated.machine.run("systemctl", "is-active", "secure_llm_proxy-standby.service", check=False).returncode
    # What was in force before the killed one is still where a roll-back leads.
    leads = _run(updated, "secure-llm-update", "--roll-back", "--dry-run", "--skip-backup")
    assert f"would try {older} on a socket of its own" in leads.stderr


def test_the_first_update_of_a_host_needs_no_migration(host: InstalledHost) -> None:
    before = _in_force(host)
    host.machine.run("rm", "-rf", f"{_RELEASES}/.update")
    host.machine.run("cp", "-a", "/src", "/srv/next")
    host.machine.run("sed", "-i", "s/^Backlog=.*/Backlog=2048/", "/srv/next/deploy/systemd/secure_llm_proxy.socket")

    there = _update(host, "/srv/next", "--skip-backup")
    came = _in_force(host)
    asks_the_filter = host.machine.run("test", "-d", "/run/secure_llm_proxy", check=False).returncode == 0
    back = _run(host, "secure-llm-update", "--roll-back", "--skip-backup")

    assert there.returncode == 0, there.stderr
    assert came != before
    # The standby had the folder, too, and has ended.
    assert asks_the_filter
    assert "secure_llm_proxy.socket has changed" in there.stderr
    assert back.returncode == 0, back.stderr
    assert "secure_llm_proxy.socket has changed" not in back.stderr
    assert _releases_that_run(host) == {before}


def test_a_dry_run_and_an_update_to_what_is_in_force_change_nothing(updated: InstalledHost) -> None:
    before = updated.machine.told("sh", "-c", f"ls {_RELEASES}; readlink /opt/secure_llm_proxy")

    told = [
        _update(updated, _lay_broken(updated.machine, "it is never ready"), "--dry-run"),
        _run(updated, "secure-llm-update", "--to", _in_force(updated)),
    ]

    assert [done.returncode for done in told] == [0, 0]
    assert updated.machine.told("sh", "-c", f"ls {_RELEASES}; readlink /opt/secure_llm_proxy") == before


@contextmanager
def _load(host: InstalledHost) -> Iterator[Outcome]:
    """Plain requests, and streams that take seconds, so that some run whatever happens."""
    provider = host.world.provider
    provider.stream_pause_s = _STREAM_PAUSE_S
    try:
        with SteadyLoad(host, host.key, plain=2, streams=3, pause_s=_PAUSE_S) as load:
            yield load.outcome
            load.wait_for_more(1)
    finally:
        provider.stream_pause_s = 0.0


def _update(host: InstalledHost, source: str, *more: str) -> subprocess.CompletedProcess[str]:
    return _run(host, f"{source}/scripts/update", "--offline", "/wheels", *more)


def _run(host: InstalledHost, *command: str) -> subprocess.CompletedProcess[str]:
    return host.machine.run(*command, check=False, timeout=_UPDATE_PATIENCE_S)


def _keep_the_hours_backup_away(host: InstalledHost) -> None:
    """It would hold the lock that the update's own backup takes. An older release may have no such units."""
    host.machine.run("systemctl", "stop", "secure-llm-backup.timer", "secure-llm-backup.service", check=False)


def _go_back_to_the_older(host: InstalledHost) -> None:
    older = (host.machine.files / "srv" / "older-name").read_text()
    if _in_force(host) != older:
        newer = _in_force(host)
        done = _run(host, f"{_RELEASES}/{newer}/scripts/update", "--to", older, "--skip-backup")
        assert done.returncode == 0, done.stderr


def _in_force(host: InstalledHost) -> str:
    return Path(host.machine.told("readlink", "/opt/secure_llm_proxy")).name


def _releases_that_run(host: InstalledHost) -> set[str]:
    """Of every process of ours, the release in whose folder it works."""
    told = host.machine.told("sh", "-c", f"ls -l /proc/[0-9]*/cwd 2>/dev/null | grep -o '{_RELEASES}/[^/]*' || true")
    assert all(host.machine.main_pid(unit) for unit in (WEB, AUDIT))
    return {Path(line).name for line in told.splitlines()}


def _newest_migration(tree: Path) -> str:
    return max(path.name.partition("_")[0] for path in (tree / "migrations" / "versions").glob("[0-9]*.py"))


def _newer(machine: DebianMachine) -> Path:
    return machine.files / _NEWER.removeprefix("/")


def _lay_older(folder: Path) -> None:
    """The first commit that could be updated, as far back as this clone goes, with the packages of now: the wheels that are
    here are those.
    """
    folder.mkdir()
    archive = folder.with_suffix(".tar")
    git = ["git", "-C", str(ROOT), "-c", "safe.directory=*"]
    commits = subprocess.run(
        [*git, "log", "--diff-filter=A", "--format=%H", "--", "scripts/update"],
        check=True, timeout=60, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    subprocess.run([*git, "archive", "-o", str(archive), commits[-1]], check=True, timeout=60)
    subprocess.run(["tar", "-C", str(folder), "-xf", str(archive)], check=True, timeout=60)
    (folder / "requirements.txt").write_bytes((ROOT / "requirements.txt").read_bytes())


def _lay_broken(machine: DebianMachine, what: str) -> str:
    """A copy of the newer release with one defect; where it is in the machine."""
    place, found, instead = _BROKEN[what]
    name = f"broken-{list(_BROKEN).index(what)}"
    machine.run("rm", "-rf", f"/srv/{name}")
    machine.run("cp", "-a", _NEWER, f"/srv/{name}")
    path = machine.files / "srv" / name / place
    if found:
        text = path.read_text("utf-8")
        assert found in text
        path.write_text(text.replace(found, instead, 1), "utf-8")
    else:
        path.write_text(
            _MIGRATION.format(
                newest=_newest_migration(_newer(machine)), upgrade="raise RuntimeError('broken release')"
            ),
            "utf-8",
        )
    return f"/srv/{name}"


def _lay_one_that_fails_at_last(machine: DebianMachine) -> str:
    """A copy of the newer release with a migration and a nginx site of its own, whose service does not start."""
    machine.run("rm", "-rf", "/srv/fails-at-last")
    machine.run("cp", "-a", _NEWER, "/srv/fails-at-last")
    tree = machine.files / "srv" / "fails-at-last"
    migration = _MIGRATION.format(newest=_newest_migration(_newer(machine)), upgrade="pass")
    (tree / "migrations/versions/9999_newer.py").write_text(migration, "utf-8")
    site = tree / "deploy/nginx/secure_llm_proxy.conf"
    site.write_text(site.read_text("utf-8") + "# of the release that fails\n", "utf-8")
    unit = tree / "deploy/systemd" / WEB
    (tree / "fails_at_last").write_text(_FAILS_AT_LAST, "utf-8")
    before_it = "ExecStartPre=+/bin/sh /srv/fails-at-last/fails_at_last %n\nExecStart="
    unit.write_text(unit.read_text("utf-8").replace("ExecStart=", before_it), "utf-8")
    return "/srv/fails-at-last"


def _nginx_files(host: InstalledHost) -> str:
    """Digests of everything that nginx reads but the other site."""
    return host.machine.told(
        "sh", "-c", "find -L /etc/nginx -type f ! -name other.conf -exec sha256sum '{}' + | LC_ALL=C sort -k 2"
    )
