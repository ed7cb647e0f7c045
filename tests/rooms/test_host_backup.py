"""scripts/backup over a real instance: what a set is, what none is, and what is kept."""

from __future__ import annotations

import fcntl
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secure_llm_proxy.cli.host_backup.sets import STAMP
from tests.support.audit_log import wait_until
from tests.support.backed_up import Instance, make_identity, make_instance


@pytest.fixture(scope="module")
def worked_with(short_folder: Path) -> Instance:
    return make_instance(short_folder / "backed-up")


@pytest.fixture
def instance(worked_with: Instance, short_folder: Path) -> Instance:
    return worked_with.in_copy(short_folder / f"backed-up-{secrets.token_hex(4)}")


def test_a_set_opens_with_the_identity_alone_and_holds_a_log_that_verifies(instance: Instance) -> None:
    told = instance.backed_up()
    shown = instance.script("backup", "--signer", "--instance", instance.data)

    opened = instance.verify("--identity", instance.identity, "--genesis", instance.owner_public_key, "--json")
    other = instance.verify("--identity", instance.identity, "--genesis", "A" * 43 + "=")
    assert opened.returncode == 0, opened.stderr
    (checked,) = json.loads(opened.stdout)
    assert checked["set"] == told["set"]
    assert checked["signer"] == told["signer"]
    assert shown.stdout == f"# backup signer: {told['signer']}\n"
    assert [(check["what"], check["well"]) for check in checked["checks"]] == [
        ("signature", True), ("files", True), ("database", True), ("keys", True), ("segments", True),
    ]  # fmt: skip
    assert (other.returncode, "signed by another owner" in other.stdout) == (1, True)
    clear = (instance.folder / ".env").read_text().split("=")[1][:32].encode()
    assert not any(clear in path.read_bytes() for path in instance.backups.rglob("*") if path.is_file())


def test_a_closed_segment_is_stored_once_for_all_sets(instance: Instance) -> None:
    instance.backed_up()
    before = instance.files()
    assert instance.manage("organisations", "create", "further").returncode == 0

    told = instance.backed_up()

    closed = {name for name in instance.files() - before if name.startswith("segments/closed/")}
    assert len(closed) == 1
    assert told["segments"] == len(list(instance.log.glob("0*.jsonl")))
    assert instance.verify("--set", "all", "--identity", instance.identity).returncode == 0


def test_what_has_no_manifest_is_no_set_and_goes_with_the_next_good_one(instance: Instance) -> None:
    first = instance.backed_up()["set"]
    (instance.backups / "sets" / f"{first}.json").rename(instance.folder / "manifest")
    (instance.backups / "keys" / ".0123456789abcdef.tmp").write_bytes(b"of a run that was killed")

    none = instance.verify()
    # Within the same second the next set has the same name.
    wait_until(lambda: datetime.now(UTC).strftime(STAMP) != first)
    second = instance.backed_up()["set"]

    assert (none.returncode, "holds no backup" in none.stderr) == (1, True)
    assert instance.verify().returncode == 0
    assert not any(str(first) in name or name.startswith("keys/.") for name in instance.files())
    assert instance.stamps() == [second]


def test_damage_is_found_without_any_identity(instance: Instance) -> None:
    stamp = instance.backed_up()["set"]
    dump = instance.backups / "database" / f"{stamp}.sqlite.age"
    whole = dump.read_bytes()

    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), None):
        dump.unlink() if damaged is None else dump.write_bytes(damaged)
        checked = instance.verify()

        assert (checked.returncode, f"{stamp}.sqlite.age" in checked.stdout) == (1, True)


def test_another_identity_opens_nothing(instance: Instance, tmp_path: Path) -> None:
    instance.backed_up()
    other = make_identity(tmp_path / "other.txt")

    checked = instance.verify("--identity", other)

    assert checked.returncode == 1
    assert checked.stdout.count("no identity matched any of the recipients") == 3


def test_a_closed_segment_that_changed_is_an_alarm_and_both_are_kept(instance: Instance) -> None:
    first = instance.backed_up()["set"]
    segment = min(instance.log.glob("0*.jsonl"))
    altered = segment.read_bytes().replace(b'"k":"seg"', b'"k":"Seg"')
    segment.chmod(0o640)
    segment.write_bytes(altered)

    alarmed = instance.backup("--keep-days", 1)
    again = instance.backup("--keep-days", 1)

    assert (alarmed.returncode, again.returncode) == (1, 1)
    assert f"differ from what an earlier set holds: {segment.name}" in alarmed.stderr
    assert f"differ from what an earlier set holds: {segment.name}" in again.stderr
    assert len(instance.stamps()) == 3
    assert instance.verify("--set", first, "--identity", instance.identity).returncode == 0
    assert instance.verify().returncode == 1


def test_a_log_whose_folder_no_set_could_name_is_told_before_anything_is_written(instance: Instance) -> None:
    instance.log.rename(instance.log.with_name("Büro 1"))

    done = instance.backup()

    assert (done.returncode, "cannot be named in a set" in done.stderr) == (1, True)
    assert instance.files() == set()


def test_a_dry_run_tells_what_would_be_written_and_writes_nothing(instance: Instance) -> None:
    told = instance.backed_up("--dry-run")

    assert told["dry_run"] is True
    assert isinstance(told["room"], dict)
    assert told["room"]["needed"] > 0
    assert not instance.backups.exists()


def test_nothing_is_made_without_a_recipient_or_by_two_at_once(instance: Instance) -> None:
    instance.backed_up()
    before = instance.stamps()
    (instance.data / "backup-recipient").write_text("# nobody\n")

    without = instance.backup()
    with (instance.backups / "secure-llm-backup.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = instance.backup()

    assert (without.returncode, "names no recipient" in without.stderr) == (1, True)
    assert (second.returncode, "another backup is running" in second.stderr) == (1, True)
    assert instance.stamps() == before


def test_one_that_is_told_to_wait_makes_its_set_after_the_other_has_ended(instance: Instance) -> None:
    instance.backed_up()
    before = instance.stamps()
    with (instance.backups / "secure-llm-backup.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        impatient = instance.backup("--wait", 1)
        patient = instance.begin("backup", "--instance", instance.data, "--to", instance.backups, "--wait", 200)
        assert patient.stderr is not None
        told = patient.stderr.readline()
        made_meanwhile = instance.stamps()
    patient.communicate(timeout=200)

    assert (impatient.returncode, "another backup is running" in impatient.stderr) == (1, True)
    assert "waiting for it, 200 s at most" in told
    assert made_meanwhile == before
    assert (patient.returncode, len(instance.stamps())) == (0, len(before) + 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--keep-days", "0"),
        ("--wait", "soon"),
        ("--wait", "-1"),
        ("--to", ""),
        ("--recipient", ""),
        ("--identity", "x"),
        ("--genesis", "x", "--verify"),
        ("--unsigned",),
        ("--nonsense",),
        ("--to",),
    ],
)
def test_mistakes_in_the_call_are_told_as_such(instance: Instance, arguments: tuple[str, ...]) -> None:
    done = instance.script("backup", *arguments)

    assert (done.returncode, "See backup --help." in done.stderr) == (2, True)
