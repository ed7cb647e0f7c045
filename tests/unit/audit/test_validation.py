"""One record verified from its bytes: what is whole passes, what was touched fails, what can't be known is unknown."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from secure_llm_proxy.audit.appender import Entry
from secure_llm_proxy.audit.evidence import SourceLine
from secure_llm_proxy.audit.format import CheckpointLine, check_metadata
from secure_llm_proxy.audit.reading import log_lines
from secure_llm_proxy.audit.validation import Result, SegmentTrees, Status, Validation, validate
from tests.support.audit_log import EXCHANGE, entry, write_log
from tests.support.file_evidence import FileEvidence

LATER = timedelta(hours=1)
COMPLETE: dict[str, str | int] = {
    "rt": "/chat",
    "usr": "usr_1",
    "ak": "k1",
    "dec": "allow",
    "mdl": "demo",
    "sub": "s_1",
}


def with_members(made: Entry, members: Mapping[str, str | int]) -> Entry:
    """With further members, in the order in which the writer puts them."""
    return replace(made, metadata=orjson.dumps(check_metadata(orjson.loads(made.metadata) | members)))


def exchange(first: int) -> list[Entry]:
    return [
        with_members(entry(first, kind="llm.start"), COMPLETE | {"ipx": "blind"}),
        entry(first + 1, kind="llm.end", sid=f"R{first:04d}", st="complete", usr="usr_1"),
    ]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three segments; the second one's exchange is R0003."""
    write_log(tmp_path, [exchange(1), [*exchange(3), *exchange(5)], exchange(7)])
    return tmp_path / "audit" / "host"


def checked(log: Path, identifier: str = "R0003", *, now: datetime | None = None) -> Validation:
    found = validate(FileEvidence(log), identifier, now or datetime.now(UTC) + LATER)
    assert found is not None
    return found


def altered(log: Path, segment: int, change: Callable[[bytes], bytes]) -> None:
    (path,) = log.glob(f"{segment:08d}-*")
    before = path.read_bytes()
    after = change(before)
    assert after != before
    path.chmod(0o600)
    path.write_bytes(after)


def results(found: Validation) -> dict[str, Result]:
    return {name: check.result for name, check in (found.integrity | found.completeness).items()}


# --- whole ------------------------------------------------------------------------------------------------------------


def test_a_record_under_a_signed_checkpoint_is_valid(log: Path) -> None:
    found = checked(log)

    assert set(results(found).values()) == {Result.PASS}
    assert (found.status, found.score) == (Status.VALID, 100)
    assert found.recommendations() == []
    assert found.checkpoint is not None
    assert found.related == ("R0004",)


@pytest.mark.parametrize("identifier", [f"R{number:04d}" for number in range(1, 9)])
def test_every_record_of_every_segment_is_valid(log: Path, identifier: str) -> None:
    assert checked(log, identifier).status is Status.VALID


def test_records_that_share_their_trees_are_judged_as_each_alone(log: Path) -> None:
    altered(log, 2, lambda data: data.replace(b'"id":"R0006"', b'"id":"R0009"'))
    names = [f"R{number:04d}" for number in (7, 3, 1, 4, 8, 2)]
    trees = SegmentTrees()
    now = datetime.now(UTC) + LATER

    together = [validate(FileEvidence(log), name, now, trees) for name in names]

    assert together == [validate(FileEvidence(log), name, now) for name in names]


def test_an_exchange_is_validated_by_its_first_record(log: Path) -> None:
    assert checked(log, EXCHANGE).row is not None
    assert checked(log, EXCHANGE).row.id == "R0001"  # type: ignore[union-attr]


def test_of_what_the_log_does_not_hold_there_is_no_validation(log: Path) -> None:
    assert validate(FileEvidence(log), "R9999", datetime.now(UTC)) is None


# --- touched ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"mdl":"demo"', b'"mdl":"dem0"', 1),
        lambda data: data.replace(b'"usr":"usr_1"', b'"usr":"usr_2"', 1),
        lambda data: re.sub(rb'("id":"R0003".*?"ct":")(.)', lambda m: m[1] + (b"B" if m[2] != b"B" else b"C"), data),
    ],
    ids=["model", "user", "body"],
)
def test_a_record_that_was_changed_is_invalid(log: Path, change: Callable[[bytes], bytes]) -> None:
    altered(log, 2, change)

    found = checked(log)

    assert found.status is Status.INVALID
    assert found.integrity["hash_verification"].result is Result.FAIL
    assert found.integrity["signature_verification"].result is Result.FAIL
    assert {check.result for check in found.compliance.values()} == {Result.FAIL}
    assert "audit verify" in found.recommendations()[0]
    assert found.score != 100


def test_a_change_elsewhere_before_the_checkpoint_breaks_its_signature(log: Path) -> None:
    altered(log, 2, lambda data: data.replace(b'"id":"R0006"', b'"id":"R0009"'))

    found = checked(log)

    assert found.integrity["signature_verification"].result is Result.FAIL
    assert found.status is Status.INVALID


def test_a_line_before_it_that_is_gone_shows(log: Path) -> None:
    altered(
        log, 2, lambda data: b"".join(line for line in data.splitlines(keepends=True) if b'"id":"R0003"' not in line)
    )

    found = checked(log, "R0004")

    assert found.status is Status.INVALID


def test_a_signature_that_was_changed_shows(log: Path) -> None:
    checkpoint = next(
        item for item in log_lines(log) if isinstance(item.line, CheckpointLine) and item.file.number == 2
    )
    signature = re.search(rb" ([A-Za-z0-9+/=]{92})", checkpoint.raw)
    assert signature is not None
    blob = bytearray(base64.b64decode(signature[1]))
    blob[-1] ^= 1
    altered(log, 2, lambda data: data.replace(signature[1], base64.b64encode(blob)))

    assert checked(log).integrity["signature_verification"].result is Result.FAIL


def test_a_record_that_no_parser_reads_is_invalid(log: Path) -> None:
    altered(log, 2, lambda data: data.replace(b'"dec":"allow"', b'"dec": "allow"', 1))

    assert checked(log).status is Status.INVALID


def test_an_end_is_never_taken_for_the_start_that_it_names(log: Path) -> None:
    class Without(FileEvidence):
        def named(self, identifier: str) -> list[SourceLine]:
            return [line for line in super().named(identifier) if b'"id":"R0003"' not in line.raw]

    found = validate(Without(log), "R0003", datetime.now(UTC))

    assert found is not None
    assert (found.status, found.row, found.score) == (Status.UNKNOWN, None, None)


# --- not known --------------------------------------------------------------------------------------------------------


def test_a_record_of_an_open_segment_has_no_signature_yet_and_is_not_valid(log: Path) -> None:
    (path,) = log.glob("00000003-*")
    lines = path.read_bytes().splitlines(keepends=True)
    path.chmod(0o600)
    path.write_bytes(b"".join(line for line in lines if b'"k":"end"' not in line and b'"k":"cp"' not in line))
    path.rename(path.with_name(path.name + ".open"))

    found = checked(log, "R0007")

    assert found.integrity["hash_verification"].result is Result.PASS
    assert found.integrity["signature_verification"].result is Result.UNKNOWN
    assert (found.status, found.score) == (Status.UNKNOWN, None)


def test_an_exchange_that_has_no_end_is_under_way_at_first_and_a_gap_later(tmp_path: Path) -> None:
    write_log(tmp_path, [[exchange(1)[0]]])
    log = tmp_path / "audit" / "host"

    soon, late = checked(log, "R0001", now=datetime.now(UTC)), checked(log, "R0001")

    assert soon.completeness["audit_trail_completeness"].result is Result.UNKNOWN
    assert soon.status is Status.UNKNOWN
    assert late.completeness["audit_trail_completeness"].result is Result.FAIL


def test_a_record_that_lacks_what_its_type_asks_for_is_incomplete(tmp_path: Path) -> None:
    write_log(tmp_path, [[entry(1, kind="llm.refused", dec="refuse")]])

    found = checked(tmp_path / "audit" / "host", "R0001")

    assert found.completeness["required_fields"].result is Result.FAIL
    assert found.completeness["security_events_logged"].result is Result.FAIL
    assert found.integrity["hash_verification"].result is Result.PASS


def test_where_a_request_came_from_is_not_taken_for_granted(tmp_path: Path) -> None:
    write_log(tmp_path, [[with_members(entry(1, kind="llm.start"), COMPLETE), exchange(1)[1]]])

    found = checked(tmp_path / "audit" / "host", "R0001")

    assert found.compliance["pci_dss_requirements"].result is Result.UNKNOWN
    assert found.compliance["gdpr_requirements"].result is Result.PASS
