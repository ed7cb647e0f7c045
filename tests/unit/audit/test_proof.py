"""One record, shown to a stranger: every honest proof is taken, and nothing else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.audit import (
    Genesis,
    ProofBroken,
    ProofNewer,
    RecordLine,
    check_proof,
    checkpoints,
    initialise,
    log_lines,
    prove,
    segments_in,
    stored_lines,
)
from secure_llm_proxy.audit.appender import Rhythm
from secure_llm_proxy.audit.format import FEATURES, CheckpointLine, KeyRollLine, base64_text, parse_line, strict_base64
from secure_llm_proxy.audit.notes import Checkpoint
from secure_llm_proxy.audit.reading import StoredLine
from secure_llm_proxy.audit.retention import Retention
from secure_llm_proxy.audit.segments import LogDirectories, SegmentFile
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.errors import NotFoundError, OperatorError
from tests.support.audit_log import appender, audit_settings, entry

SHARED = Path(__file__).parent / "logs"
OFTEN = Rhythm(lines=5, dirty_s=1000.0, idle_s=1000.0, epoch_s=1000.0)
# A key is old as soon as it is there: a fast machine commits a line in less than any time that could be named here.
ROLLING = Rhythm(lines=5, dirty_s=1000.0, idle_s=1000.0, epoch_s=0.0)


def grow(genesis: Genesis, counters: range, *, model: str = "demo") -> None:
    log = appender(genesis, rhythm=ROLLING)
    log.open_segment()
    for counter in counters:
        log.commit([entry(counter, mdl=model)])
        log.keep_rhythm()
    log.close_segment("stop")


@pytest.fixture(scope="module")
def genesis(tmp_path_factory: pytest.TempPathFactory) -> Genesis:
    """A log of three segments with key rolls in each. Tests only read it."""
    made = initialise(audit_settings(tmp_path_factory.mktemp("proof")))
    for counters in (range(1, 14), range(14, 17), range(17, 30)):
        grow(made, counters, model="\u201emodèle\u201c \U0001f512")
    return made


@pytest.fixture(scope="module")
def proof(genesis: Genesis) -> bytes:
    return proof_of(genesis, "R0021")


@pytest.fixture(scope="module")
def other_proof(genesis: Genesis) -> bytes:
    return proof_of(genesis, "R0011")


def proof_of(genesis: Genesis, identifier: str, *, lines_least: int = 0) -> bytes:
    return prove(genesis.directory, segments_in(genesis.directory), identifier, lines_least=lines_least)


def signed(genesis: Genesis) -> list[tuple[Checkpoint, str]]:
    return list(checkpoints(genesis.directory, segments_in(genesis.directory)))


class Centuries(SystemClock):
    """A clock by which every segment is old."""

    def now(self) -> datetime:
        return super().now() + timedelta(days=36_500)


def retire(genesis: Genesis, *, keep: int) -> None:
    """Afterwards the log has only its last `keep` segments, at least two."""
    last = segments_in(genesis.directory)[-keep].number

    def is_old(segment: SegmentFile) -> bool:
        return segment.number < last

    retention = Retention(LogDirectories(genesis.directory), days=1, is_backed_up=is_old, clock=Centuries())
    retention.retire(lambda _: None)
    assert len(segments_in(genesis.directory)) == keep


def refused(document: bytes, genesis: Genesis) -> bool:
    try:
        check_proof(document, genesis.owner_public_key)
    except (ProofBroken, ProofNewer):
        return True
    return False


def written(members: dict[str, Any]) -> bytes:
    """In the one form, so that only the content is at fault."""
    return orjson.dumps(members, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def changed(document: bytes, **members: object) -> bytes:
    return written({**orjson.loads(document), **members})


# --- what is true -----------------------------------------------------------------------------------------------------


def test_every_record_of_a_log_is_proven_at_its_place(genesis: Genesis) -> None:
    records = {item.line.id: item for item in log_lines(genesis.directory) if isinstance(item.line, RecordLine)}

    for identifier, item in records.items():
        proven = check_proof(proof_of(genesis, identifier), genesis.owner_public_key)

        assert item.line is not None
        assert (proven.log, proven.n, proven.raw, proven.line) == (genesis.log, item.line.n, item.raw, item.line)
        assert proven.n < proven.size
        assert proven.key_rolls > 0
    assert len(records) == 29


def test_a_proof_says_what_was_signed_when_and_by_whom(genesis: Genesis, proof: bytes) -> None:
    lines = [parse_line(line.raw, FEATURES) for line in stored_lines(segments_in(genesis.directory))]
    proven = check_proof(proof, genesis.owner_public_key)

    (signed,) = [line for line in lines if isinstance(line, CheckpointLine) and line.n == proven.size]
    rolls = [line for line in lines if isinstance(line, KeyRollLine) and line.n < proven.size]
    assert proven.signed_at == signed.t
    assert proven.key_rolls == len(rolls)
    assert proven.epoch_public_key == base64_text(rolls[-1].epoch_public_key)
    assert (proven.owner_public_key, proven.restarts) == (genesis.owner_public_key, ())


def test_a_record_is_proven_to_any_later_checkpoint(genesis: Genesis) -> None:
    for checkpoint, _ in signed(genesis):
        if checkpoint.size > 4:
            document = proof_of(genesis, "R0001", lines_least=checkpoint.size)

            assert check_proof(document, genesis.owner_public_key).size == checkpoint.size


def test_a_log_that_was_begun_by_the_first_release_proves_its_old_lines(tmp_path: Path) -> None:
    settings = audit_settings(tmp_path)
    shutil.copytree(SHARED / "first-release", tmp_path, dirs_exist_ok=True)
    genesis = initialise(settings)
    grow(genesis, range(100, 110))

    for item in log_lines(genesis.directory):
        if isinstance(item.line, RecordLine) and item.line.id != "R0109":
            document = proof_of(genesis, item.line.id)

            assert check_proof(document, genesis.owner_public_key).raw == item.raw


@pytest.mark.parametrize("keep", [2, 3])
def test_what_is_left_of_retired_segments_carries_the_proofs_of_the_others(tmp_path: Path, keep: int) -> None:
    genesis = initialise(audit_settings(tmp_path))
    for first in (1, 6, 11, 16):
        grow(genesis, range(first, first + 5))
    before = [checkpoint for checkpoint, _ in signed(genesis)]
    retire(genesis, keep=keep)

    for item in log_lines(genesis.directory):
        if isinstance(item.line, RecordLine):
            assert check_proof(proof_of(genesis, item.line.id), genesis.owner_public_key).raw == item.raw
    with pytest.raises(NotFoundError):
        proof_of(genesis, "R0001")
    after = [checkpoint for checkpoint, _ in signed(genesis)]
    assert len([checkpoint for checkpoint in after if checkpoint.size <= segments_first(genesis)]) == 4 - keep
    assert set(after) < set(before)


def segments_first(genesis: Genesis) -> int:
    return next(stored_lines(segments_in(genesis.directory))).n


def test_lines_of_the_first_release_are_proven_behind_retired_ones(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "first-release", tmp_path, dirs_exist_ok=True)
    genesis = initialise(audit_settings(tmp_path))
    old = len(segments_in(genesis.directory))
    for first in (100, 110, 120):
        grow(genesis, range(first, first + 5))
    assert old > 1
    retire(genesis, keep=old + 2)

    proven = [
        check_proof(proof_of(genesis, item.line.id), genesis.owner_public_key).n
        for item in log_lines(genesis.directory)
        if isinstance(item.line, RecordLine) and item.line.id != "R0124"
    ]
    assert proven
    assert proven[0] < segments_first(genesis) + 10


def test_the_owners_restart_is_told(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    grow(genesis, range(1, 4))
    assert genesis.owner_private_key is not None
    tmp_path.joinpath("audit-keys", "epoch.key").unlink()
    log = appender(genesis, epoch_key=False)
    log.restart(Ed25519PrivateKey.from_private_bytes(strict_base64(genesis.owner_private_key)))
    grow(genesis, range(4, 8))

    before = check_proof(proof_of(genesis, "R0002"), genesis.owner_public_key)
    after = check_proof(proof_of(genesis, "R0005"), genesis.owner_public_key)

    assert before.restarts == ()
    assert len(after.restarts) == 1


def test_making_one_looks_at_the_log_once_and_keeps_none_of_it(genesis: Genesis) -> None:
    seen: list[int] = []

    def watch(lines: Iterator[StoredLine]) -> Iterator[StoredLine]:
        for line in lines:
            seen.append(line.n)
            yield line

    size = check_proof(
        prove(genesis.directory, segments_in(genesis.directory), "R0002", watch=watch), genesis.owner_public_key
    ).size

    # No line twice, and none behind the checkpoint.
    assert seen == list(range(size + 1))


# --- what cannot be proven --------------------------------------------------------------------------------------------


def test_what_is_not_there_is_said(genesis: Genesis) -> None:
    with pytest.raises(NotFoundError, match="No record has that id"):
        proof_of(genesis, "R9999")
    with pytest.raises(NotFoundError, match=r"of one record: R0001 \(llm.refused\), R0002"):
        proof_of(genesis, "exc_01KAHG0000000000000000TEST")
    with pytest.raises(OperatorError, match="No checkpoint covers line"):
        proof_of(genesis, "R0001", lines_least=1 << 61)


def test_a_record_that_is_not_signed_yet_waits(tmp_path: Path) -> None:
    genesis = initialise(audit_settings(tmp_path))
    log = appender(genesis, rhythm=OFTEN)
    log.open_segment()
    log.commit([entry(1)])

    with pytest.raises(OperatorError, match="No checkpoint covers line 3 yet"):
        proof_of(genesis, "R0001")


@pytest.mark.parametrize("victim", ["R0018", "R0021"])
def test_an_altered_log_gives_no_proof(genesis: Genesis, tmp_path: Path, victim: str) -> None:
    host = tmp_path / "host"
    shutil.copytree(genesis.directory, host, symlinks=True)
    path = max(host.glob("0*.jsonl"))
    path.chmod(0o600)
    path.write_bytes(
        path.read_bytes().replace(b'"id":"%b","rid":"exc' % victim.encode(), b'"id":"%b","rid":"exd' % victim.encode())
    )

    with pytest.raises(OperatorError, match="audit verify"):
        prove(host, segments_in(host), "R0021")


# --- what is no proof -------------------------------------------------------------------------------------------------


def test_a_proof_with_any_byte_altered_is_refused(genesis: Genesis) -> None:
    proof = proof_of(genesis, "R0003")
    dice = random.Random(5)
    taken = [
        (place, bit)
        for place in range(len(proof))
        for bit in (1, 1 << dice.randrange(1, 8))
        if not refused(proof[:place] + bytes([proof[place] ^ bit]) + proof[place + 1 :], genesis)
    ]

    assert not refused(proof, genesis)
    assert taken == []


def test_a_proof_that_is_cut_off_or_added_to_is_refused(genesis: Genesis, proof: bytes) -> None:
    assert all(refused(proof[:size], genesis) for size in range(len(proof)))
    for more in (b"\n", b" ", b"\x00", b"{}", proof, b"\xff"):
        assert refused(proof + more, genesis)
        assert refused(more + proof, genesis)
    dice = random.Random(6)
    for _ in range(500):
        place = dice.randrange(len(proof))
        assert refused(proof[:place] + proof[place + 1 :], genesis)
        assert refused(proof[:place] + b" " + proof[place:], genesis)
        assert refused(proof[:place] + proof[place : place + 1] + proof[place:], genesis)


def test_members_in_another_order_doubled_left_out_or_added_are_refused(genesis: Genesis, proof: bytes) -> None:
    members = orjson.loads(proof)
    dice = random.Random(7)

    for name in members:
        without = {key: value for key, value in members.items() if key != name}
        assert refused(written(without), genesis)
        assert refused(written({**without, name: members[name]}), genesis) or name == "rolls"
        text = json.dumps({name: members[name]}, ensure_ascii=False, indent=2)[1:-2].encode()
        assert refused(proof[:1] + text + b"," + proof[1:], genesis)
        assert refused(proof.rstrip(b"}\n") + b"," + text + b"\n}\n", genesis)
    for _ in range(50):
        names = [*members]
        dice.shuffle(names)
        if names != [*members]:
            assert refused(written({name: members[name] for name in names}), genesis)
    assert refused(changed(proof, more=1), genesis)
    assert refused(orjson.dumps(members), genesis)
    assert refused(json.dumps(members, indent=2).encode() + b"\n", genesis)
    assert refused(b"\xef\xbb\xbf" + proof, genesis)


def test_members_of_another_record_log_or_owner_are_refused(
    genesis: Genesis, proof: bytes, other_proof: bytes, tmp_path: Path
) -> None:
    foreign = initialise(audit_settings(tmp_path))
    for counters in (range(1, 14), range(14, 17), range(17, 30)):
        grow(foreign, counters)
    foreign_proof = proof_of(foreign, "R0021")
    assert not refused(foreign_proof, foreign)

    for strange in (other_proof, foreign_proof):
        for name, value in orjson.loads(strange).items():
            if orjson.loads(proof)[name] != value:
                assert refused(changed(proof, **{name: value}), genesis), name
    # The same name of the log, and another owner.
    assert foreign.log == genesis.log
    with pytest.raises(ProofBroken, match="another owner's"):
        check_proof(foreign_proof, genesis.owner_public_key)
    with pytest.raises(ProofBroken, match="another owner's"):
        check_proof(proof, foreign.owner_public_key)


def test_every_other_checkpoint_of_the_log_is_refused(genesis: Genesis, proof: bytes) -> None:
    own = orjson.loads(proof)["checkpoint"]
    others = [note for _, note in signed(genesis) if note != own]
    before = [note for checkpoint, note in signed(genesis) if checkpoint.size <= orjson.loads(proof)["n"]]

    assert len(before) > 3
    assert all(refused(changed(proof, checkpoint=note), genesis) for note in others)
    with pytest.raises(ProofBroken, match="does not cover the line"):
        check_proof(changed(proof, checkpoint=before[-1]), genesis.owner_public_key)


def test_a_path_of_another_length_or_order_is_refused(genesis: Genesis, proof: bytes) -> None:
    path = orjson.loads(proof)["path"]

    for altered in (
        path[:-1],
        path[1:],
        [*path, path[0]],
        [path[0], *path],
        path[::-1],
        [],
        path * 100,
        [path[0]] * len(path),
        [*path[:-1], path[-1][:-4]],
        [*path[:-1], path[-1] + "="],
        [*path[:-1], ""],
        [*path[:-1], None],
        [*path[:-1], 5],
        {"0": path[0]},
        "".join(path),
    ):
        assert refused(changed(proof, path=altered), genesis)


def test_the_chain_of_keys_is_whole_or_refused(genesis: Genesis, proof: bytes) -> None:
    rolls = orjson.loads(proof)["rolls"]
    later = [
        line.raw.decode()
        for line in stored_lines(segments_in(genesis.directory))
        if line.raw.startswith(b'{"k":"kr"') and line.raw.decode() not in rolls
    ]
    assert len(rolls) > 3
    assert later

    for place in range(len(rolls)):
        assert refused(changed(proof, rolls=rolls[:place] + rolls[place + 1 :]), genesis)
        assert refused(changed(proof, rolls=rolls[: place + 1] + rolls[place:]), genesis)
        assert (
            refused(changed(proof, rolls=[*rolls[:place], *reversed(rolls[place:])]), genesis) or place > len(rolls) - 2
        )
    for altered in ([], [*rolls, later[0]], [later[0]], [*rolls, ""], [*rolls, "{}"], [*rolls, 5], None, "x"):
        assert refused(changed(proof, rolls=altered), genesis)
    assert refused(changed(proof, rolls=[*rolls, orjson.loads(proof)["line"]]), genesis)


@pytest.mark.parametrize(
    "value", [-1, 0, 1, 1 << 53, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1, 1.0, True, None, "21", [], {}]
)
def test_a_number_of_another_kind_or_size_is_refused(genesis: Genesis, proof: bytes, value: object) -> None:
    assert refused(changed(proof, n=value), genesis)
    if value != 1 or isinstance(value, bool | float):
        assert refused(changed(proof, v=value), genesis)


@pytest.mark.parametrize("number", [b"9" * 25, b"1e400", b"1" * 5000, b"NaN", b"-0", b"021", b"0x15", b"1_0"])
def test_a_number_that_no_program_reads_alike_is_refused(genesis: Genesis, proof: bytes, number: bytes) -> None:
    n = str(orjson.loads(proof)["n"]).encode()

    assert refused(proof.replace(b'"n": ' + n, b'"n": ' + number, 1), genesis)
    note = orjson.loads(proof)["checkpoint"].split("\n")
    assert refused(changed(proof, checkpoint="\n".join([note[0], number.decode(), *note[2:]])), genesis)


@pytest.mark.parametrize("depth", [200, 253, 254, 255, 300, 1000, 1023, 1025, 100_000])
def test_deep_json_is_refused(genesis: Genesis, proof: bytes, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth

    assert refused(deep, genesis)
    assert refused(b'{"kind":"secure-llm-proxy audit proof","v":1,"x":' + deep + b"}", genesis)
    for name in ("line", "genesis", "checkpoint"):
        assert refused(changed(proof, **{name: '{"k":' + deep.decode() + "}"}), genesis)
    assert refused(changed(proof, rolls=['{"k":' + deep.decode() + "}"]), genesis)


def test_a_later_version_is_left_to_a_later_program(genesis: Genesis, proof: bytes) -> None:
    for version in (2, 1 << 40):
        with pytest.raises(ProofNewer):
            check_proof(changed(proof, v=version), genesis.owner_public_key)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(value=json_values, name=st.sampled_from(["v", "kind", "n", "line", "path", "checkpoint", "genesis", "rolls"]))
def test_any_other_value_of_a_member_is_refused(genesis: Genesis, proof: bytes, value: object, name: str) -> None:
    if orjson.loads(proof)[name] != value or type(value) is not type(orjson.loads(proof)[name]):
        assert refused(changed(proof, **{name: value}), genesis)


@given(document=st.binary(max_size=300) | json_values.map(orjson.dumps))
def test_anything_else_is_refused(genesis: Genesis, document: bytes) -> None:
    assert refused(document, genesis)
