"""A log over two directories: the real writer while the first of them is away, read-only, or back again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_llm_proxy.audit import Outcome, SocketJournal, initialise, verify
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import (
    REPOSITORY,
    WAIT_S,
    WriterProcess,
    audit_settings,
    check,
    environment_of,
    event,
    records_in,
    wait_until,
    writer_process,
)


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    return audit_settings(tmp_path, fallback_directory=tmp_path / "second", segment_bytes_max=4096)


@pytest.fixture
def writer(settings: AuditSettings) -> Iterator[WriterProcess]:
    with writer_process(settings) as process:
        yield process


class Places:
    """Both directories of a log. The first can be taken away, as by an unmounted disk, and brought back."""

    def __init__(self, settings: AuditSettings) -> None:
        assert settings.fallback_directory is not None
        self.first = settings.directory / "host"
        self.second = settings.fallback_directory / "host"
        self._away = settings.directory / "elsewhere"

    def take_away(self) -> None:
        self.first.rename(self._away)

    def bring_back(self) -> None:
        self._away.rename(self.first)

    def await_segment(self, number: int, place: Path, writer: WriterProcess) -> None:
        """The segment opens after the record that fills the one before it was acknowledged.

        It has its name a moment before the writer is done with it, and with the directory.
        """
        wait_until(lambda: f'"event": "segment_opened", "segment": "{number:08d}-' in writer.said(), writer.said)
        assert number in self.numbers(place)

    def numbers(self, place: Path) -> list[int]:
        return sorted(int(path.name[:8]) for path in place.glob("0*"))


@pytest.fixture
def places(settings: AuditSettings) -> Places:
    return Places(settings)


def record_segments(settings: AuditSettings, count: int, *, first: int = 0) -> None:
    """Records that fill `count` segments, numbered from `first`."""
    journal = SocketJournal(settings)
    for number in range(first, first + count):
        journal.record(event(number=number, body=bytes(4096)))
    journal.close()


def refusal_to_start(settings: AuditSettings) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "secure_llm_proxy.audit"],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "ENV_FILE": os.devnull, **environment_of(settings)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 2
    return done.stderr.splitlines()[-1]


def test_while_the_first_directory_is_away_segments_open_in_the_second_and_then_in_the_first_again(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    record_segments(settings, 2)
    places.await_segment(3, places.first, writer)
    places.take_away()
    record_segments(settings, 3, first=2)
    places.await_segment(6, places.second, writer)
    wait_until(lambda: '"what": "second_directory"' in writer.said(), writer.said)
    leads_to = (settings.directory / "audit.jsonl").resolve()
    places.bring_back()
    record_segments(settings, 2, first=5)
    places.await_segment(8, places.first, writer)

    assert writer.stop() == 0
    assert leads_to.parent == places.second
    assert (places.numbers(places.first), places.numbers(places.second)) == ([1, 2, 3, 7, 8], [4, 5, 6])
    written = records_in(settings.directory, also=settings.fallback_directory)
    assert [record.clear["number"] for record in written if "number" in record.clear] == list(range(7))
    report = check(settings)
    assert report.ok, report.findings
    assert '"event": "directory_failed"' in writer.said()
    told = records_in(settings.directory, also=settings.fallback_directory)
    assert [record.clear["what"] for record in told if record.type == "audit.trouble"] == ["second_directory"]


def test_without_its_second_directory_a_log_over_two_is_not_whole(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    record_segments(settings, 1)
    places.await_segment(2, places.first, writer)
    places.take_away()
    record_segments(settings, 2, first=1)
    places.await_segment(4, places.second, writer)
    places.bring_back()
    record_segments(settings, 1, first=3)
    writer.stop()

    at_home = verify(settings.directory, genesis_public_key=None)
    moved = places.second.with_name("moved")
    places.second.rename(moved)
    alone = verify(settings.directory, genesis_public_key=None)
    together = verify(places.first, genesis_public_key=None, also=moved)

    # The first directory says where the writer had the second.
    assert at_home.ok, at_home.findings
    assert alone.outcome is Outcome.TAMPERED
    assert together.ok, together.findings


def test_a_writer_killed_in_the_second_directory_goes_on_in_the_first(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    record_segments(settings, 1)
    places.await_segment(2, places.first, writer)
    places.take_away()
    record_segments(settings, 2, first=1)
    places.await_segment(4, places.second, writer)
    writer.kill()
    places.bring_back()

    writer.start()
    record_segments(settings, 1, first=3)

    assert writer.stop() == 0
    written = records_in(settings.directory, also=settings.fallback_directory)
    assert [record.clear["number"] for record in written if "number" in record.clear] == [0, 1, 2, 3]
    report = check(settings)
    assert report.ok, report.findings


def test_a_writer_starts_while_its_first_directory_is_read_only(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    record_segments(settings, 1)
    writer.kill()
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    mounts = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    writer.launcher = (*namespace, "sh", "-c", mounts, str(settings.directory))

    writer.start()
    record_segments(settings, 1, first=1)
    writer.stop()
    writer.launcher = ()
    writer.start()
    record_segments(settings, 1, first=2)

    assert writer.stop() == 0
    written = records_in(settings.directory, also=settings.fallback_directory)
    assert [record.clear["number"] for record in written if "number" in record.clear] == [0, 1, 2]
    assert places.numbers(places.second)
    report = check(settings)
    assert report.ok, report.findings


def test_a_first_directory_without_room_refuses_nobody_while_the_second_has_some(
    settings: AuditSettings, tmp_path: Path
) -> None:
    small = settings.model_copy(update={"free_bytes_min": 8 << 20, "reserve_bytes": 0})
    initialise(small)
    shutil.copytree(small.directory, tmp_path / "kept")
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    mounts = 'mount -t tmpfs -o size=4m tmpfs "$0" && cp -a "$1/." "$0" && shift && exec "$@"'
    writer = WriterProcess(small, tmp_path / "writer.log")
    writer.launcher = (*namespace, "sh", "-c", mounts, str(small.directory), str(tmp_path / "kept"))

    try:
        writer.start()
        record_segments(small, 3)
        assert writer.stop() == 0
    finally:
        writer.end()

    assert len(Places(small).numbers(Places(small).second)) >= 3
    written = records_in(small.directory, also=small.fallback_directory)
    assert [record.clear["number"] for record in written if "number" in record.clear] == [0, 1, 2]
    assert check(small).ok


def test_when_the_first_directory_has_vanished_no_other_log_begins(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    record_segments(settings, 1)
    writer.stop()
    shutil.rmtree(places.first)
    unnamed = settings.model_copy(update={"host_id": ""})

    for configured in (settings, unnamed):
        said = refusal_to_start(configured)
        assert "gone or not mounted" in said
        assert str(places.first) in said

    # Here it was never needed, and yet it may hold the end of the log.
    shutil.rmtree(places.second)
    places.first.mkdir()
    assert "holds no audit log yet" in refusal_to_start(settings)


def test_segments_in_the_second_directory_keep_a_new_root_of_trust_from_being_made(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    places.await_segment(1, places.first, writer)
    places.take_away()
    record_segments(settings, 2)
    places.await_segment(3, places.second, writer)
    writer.stop()

    with pytest.raises(OperatorError, match="or in the second directory"):
        initialise(settings)


def test_a_log_does_not_go_on_without_its_second_directory(
    settings: AuditSettings, writer: WriterProcess, places: Places
) -> None:
    record_segments(settings, 1)
    writer.stop()
    segments = places.numbers(places.first)
    shutil.rmtree(places.second)

    assert "Is its disk mounted?" in refusal_to_start(settings)
    assert "AUDIT_FALLBACK_DIR names none" in refusal_to_start(settings.model_copy(update={"fallback_directory": None}))
    assert places.numbers(places.first) == segments


@pytest.mark.parametrize("inside", ["audit", "audit/second", "."])
def test_the_two_directories_lie_apart(tmp_path: Path, inside: str) -> None:
    settings = audit_settings(tmp_path, fallback_directory=tmp_path / inside)
    initialise(settings)

    assert "neither inside the other" in refusal_to_start(settings)


def test_another_logs_second_directory_is_refused(tmp_path: Path, settings: AuditSettings) -> None:
    other = audit_settings(tmp_path / "other", fallback_directory=settings.fallback_directory, deployment="other")
    with writer_process(settings) as writer:
        writer.stop()
    initialise(other)

    assert "second directory of another log" in refusal_to_start(other)
