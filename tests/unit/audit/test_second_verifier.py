"""A verifier written after the document alone and ours judge every log alike: the document says all that it takes."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit import Genesis, initialise, verify
from secure_llm_proxy.audit.appender import Appender, Disk, Rhythm
from secure_llm_proxy.audit.format import base64_text, leaf, strict_base64
from secure_llm_proxy.audit.notes import Checkpoint, read_checkpoint, sign_checkpoint
from tests.support import second_verifier
from tests.support.audit_log import REPOSITORY, WORKER, appender, audit_settings, entry, write_log

OFTEN = Rhythm(lines=5, dirty_s=1000.0, idle_s=1000.0, epoch_s=1000.0)
# A key is old as soon as it is there: a fast machine commits a line in less than any time that could be named here.
ROLLING = Rhythm(lines=5, dirty_s=1000.0, idle_s=1000.0, epoch_s=0.0)
FIRST_RELEASE = Path(__file__).parent / "logs" / "first-release"
SEED = 20

Files = dict[str, bytes]
Edit = Callable[[dict[str, object]], object]


class FailingSync(Disk):
    def __init__(self, at: int) -> None:
        self.at = at

    def sync_data(self, descriptor: int) -> None:
        self.at -= 1
        if self.at == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_data(descriptor)


def _grow(log: Appender, counters: range, *, close: bool = True) -> None:
    log.open_segment()
    for counter in counters:
        log.commit([entry(counter)])
        log.keep_rhythm()
    if close:
        log.close_segment("stop")


def _tear(genesis: Genesis, tail: bytes) -> None:
    (running,) = genesis.directory.glob("*.open")
    with running.open("ab") as stream:
        stream.write(tail)


# --- logs -------------------------------------------------------------------------------------------------------------


def _plain(directory: Path) -> Genesis:
    return write_log(directory)


def _empty(directory: Path) -> Genesis:
    return initialise(audit_settings(directory))


def _checkpoints(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory))
    for first in (1, 9, 17):
        _grow(appender(genesis, rhythm=OFTEN), range(first, first + 8))
    return genesis


def _clear(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory, kek=None, encryption_enabled=False))
    for first in (1, 6):
        _grow(appender(genesis, kek=None, rhythm=OFTEN), range(first, first + 5))
    return genesis


def _rolls(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory))
    for first in (1, 4, 7):
        _grow(appender(genesis, rhythm=ROLLING), range(first, first + 3))
    return genesis


def _crashed(directory: Path) -> Genesis:
    """Two that were set aside, one with a torn tail; the last goes on without a checkpoint."""
    genesis = initialise(audit_settings(directory))
    _grow(appender(genesis, rhythm=OFTEN), range(1, 5), close=False)
    _tear(genesis, b'{"k":"rec","n":')
    _grow(appender(genesis), range(5, 8), close=False)
    _grow(appender(genesis), range(8, 11), close=False)
    return genesis


def _torn(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory))
    _grow(appender(genesis), range(1, 4), close=False)
    _tear(genesis, b'{"k":"rec","n":')
    return genesis


def _whole_lines_torn(directory: Path) -> Genesis:
    """A tail with whole lines, as after a power cut."""
    genesis = initialise(audit_settings(directory))
    _grow(appender(genesis), range(1, 4), close=False)
    _tear(genesis, b"\0\0\0\n\0\0")
    _grow(appender(genesis), range(4, 6))
    return genesis


def _failed_disk(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory))
    log = appender(genesis, disk=FailingSync(6), rhythm=OFTEN)
    _grow(log, range(1, 9), close=False)
    log.close_segment("stop")
    return genesis


def _failed_disk_at_the_end(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory))
    log = appender(genesis, rhythm=OFTEN)
    _grow(log, range(1, 4), close=False)
    log._disk = FailingSync(1)
    with pytest.raises(OSError, match="Input/output"):
        log.close_segment("stop")
    return genesis


def _exchanges(directory: Path) -> Genesis:
    """Open over the end of a segment, orphaned, ended after all, never begun."""
    return write_log(
        directory,
        [
            [entry(1, kind="llm.start"), entry(2, kind="llm.start"), entry(3, kind="llm.start")],
            [entry(4, kind="llm.end", sid="R0001", st="complete"), entry(5, kind="llm.end", sid="R0002", st="orphan")],
            [
                entry(6, kind="llm.end", sid="R0002", st="complete"),
                entry(7, kind="llm.end", sid="R0003", st="killed"),
                entry(8, kind="llm.end", sid="R9999", st="complete"),
            ],
        ],
    )


def _unended(directory: Path) -> Genesis:
    return write_log(directory, [[entry(1, kind="llm.start")], [entry(2)]])


def _doubled(directory: Path) -> Genesis:
    return write_log(directory, [[entry(1), entry(2), entry(2)]])


def _parts(directory: Path) -> Genesis:
    part = [entry(n, kind="llm.part", pt_of="R0003", seq=n - 1, last=n == 2) for n in (1, 2)]
    return write_log(directory, [[part[0]], [part[1], entry(3, parts=2)]])


def _parts_lost(directory: Path) -> Genesis:
    part = entry(1, kind="llm.part", pt_of="R0003", seq=0, last=False)
    return write_log(directory, [[part, entry(3, parts=2)]])


def _first_release(directory: Path) -> Genesis:
    shutil.copytree(FIRST_RELEASE, directory, dirs_exist_ok=True)
    return initialise(audit_settings(directory))


def _continued(directory: Path) -> Genesis:
    genesis = _first_release(directory)
    log = appender(genesis, rhythm=OFTEN)
    _grow(log, range(100, 110), close=False)
    log.commit([entry(110, kind="llm.end", sid="R0005", st="orphan")])
    log.close_segment("stop")
    _grow(appender(genesis, rhythm=ROLLING), range(111, 114))
    return genesis


def _restarted(directory: Path) -> Genesis:
    genesis = initialise(audit_settings(directory))
    assert genesis.owner_private_key is not None
    _grow(appender(genesis, rhythm=ROLLING), range(1, 4))
    (directory / "audit-keys" / "epoch.key").unlink()
    log = appender(genesis, epoch_key=False)
    log.restart(Ed25519PrivateKey.from_private_bytes(strict_base64(genesis.owner_private_key)))
    _grow(appender(genesis), range(4, 7))
    return genesis


def _usurped(directory: Path) -> Genesis:
    """Somebody who isn't the owner put a new key in force."""
    genesis = initialise(audit_settings(directory))
    _grow(appender(genesis), range(1, 4))
    (directory / "audit-keys" / "epoch.key").unlink()
    appender(genesis, epoch_key=False).restart(Ed25519PrivateKey.generate())
    return genesis


LOGS: dict[str, tuple[Callable[[Path], Genesis], int]] = {
    "plain": (_plain, 0),
    "empty": (_empty, 0),
    "checkpoints": (_checkpoints, 0),
    "without encryption": (_clear, 0),
    "key rolls": (_rolls, 0),
    "crashed": (_crashed, 0),
    "torn": (_torn, 3),
    "whole lines torn": (_whole_lines_torn, 3),
    "failed disk": (_failed_disk, 0),
    "failed disk at the end": (_failed_disk_at_the_end, 0),
    "exchanges": (_exchanges, 0),
    "exchange without end": (_unended, 3),
    "record twice": (_doubled, 1),
    "parts": (_parts, 0),
    "parts lost": (_parts_lost, 3),
    "first release": (_first_release, 3),
    "first release continued": (_continued, 0),
    "restarted by the owner": (_restarted, 0),
    "restarted by another": (_usurped, 1),
}


class Kept:
    """The files of a log, to be altered and judged as often as one likes."""

    def __init__(self, genesis: Genesis, scratch: Path) -> None:
        self.owner = genesis.owner_public_key
        self.files: Files = {
            path.name: path.read_bytes()
            for path in genesis.directory.iterdir()
            if not path.is_symlink() and not path.name.startswith(".")
        }
        self.segments = sorted(name for name in self.files if name != "genesis.json")
        self.notes = [
            str(orjson.loads(line)["note"])
            for name in self.segments
            for line in self.files[name].splitlines()
            if line.startswith(b'{"k":"cp"') and line.endswith(b"}")
        ]
        self._scratch = scratch

    def judged(self, files: Files, anchors: list[str] | None = None) -> tuple[int, int, str]:
        """The exit codes, ours and the second's, and what both say."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        for name, content in files.items():
            (self._scratch / name).write_bytes(content)
        report = verify(self._scratch, genesis_public_key=self.owner, anchors=anchors or [])
        code, findings = second_verifier.verify([self._scratch], self.owner, anchors or [])
        return report.exit_code, code, f"ours: {[*map(str, report.findings)]}, the second: {findings}"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kept]:
    logs = {}
    for name, (make, _) in LOGS.items():
        directory = tmp_path_factory.mktemp("log")
        logs[name] = Kept(make(directory), directory / "scratch")
    return logs


# --- alterations ------------------------------------------------------------------------------------------------------


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _chained(lines: list[bytes]) -> bytes:
    """The chain behind the first line made good again, as somebody does who knows the format."""
    written = lines[:1]
    for line in lines[1:]:
        try:
            written.append(orjson.dumps(orjson.loads(line) | {"p": base64_text(leaf(written[-1]))}))
        except orjson.JSONDecodeError:
            written.append(line)
    return _joined(written)


def _flips(log: Kept) -> Iterator[tuple[str, Files]]:
    chance = random.Random(SEED)
    for name in log.files:
        content = log.files[name]
        for position in sorted(chance.sample(range(len(content)), min(12, len(content)))):
            flipped = bytearray(content)
            flipped[position] ^= 1 << chance.randrange(8)
            yield f"bit flipped in byte {position} of {name}", log.files | {name: bytes(flipped)}


def _cuts(log: Kept) -> Iterator[tuple[str, Files]]:
    chance = random.Random(SEED)
    for name in log.segments:
        content = log.files[name]
        ends = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
        for size in sorted(
            {0, 1, len(content) - 1, *chance.sample(ends, min(4, len(ends))), chance.randrange(len(content))}
        ):
            yield f"{name} cut to {size} bytes", log.files | {name: content[:size]}
        for tail in (b"x", b"\n", b"{}\n", content.splitlines(keepends=True)[-1]):
            yield f"{name} grown by {tail[:20]!r}", log.files | {name: content + tail}


def _lines(log: Kept) -> Iterator[tuple[str, Files]]:
    chance = random.Random(SEED)
    for name in log.segments:
        lines = log.files[name].splitlines()
        for at in sorted(chance.sample(range(len(lines)), min(5, len(lines)))):
            other = chance.randrange(len(lines))
            swapped = list(lines)
            swapped[at], swapped[other] = swapped[other], swapped[at]
            for what, changed in (
                ("deleted", lines[:at] + lines[at + 1 :]),
                ("duplicated", lines[: at + 1] + lines[at:]),
                (f"swapped with {other + 1}", swapped),
                ("preceded by a foreign line", [*lines[:at], b'{"k":"zz"}', *lines[at:]]),
                (f"preceded by {other + 1}", [*lines[:at], lines[other], *lines[at:]]),
            ):
                yield f"line {at + 1} of {name} {what}", log.files | {name: _joined(changed)}
                if what == "deleted" and at:
                    yield f"line {at + 1} of {name} {what}, chained", log.files | {name: _chained(changed)}


def _segments(log: Kept) -> Iterator[tuple[str, Files]]:
    for name in log.segments:
        others = {each: content for each, content in log.files.items() if each != name}
        yield f"{name} removed", others
        for old, new in (("0000000", "0000001"), ("0000000", "000000"), ("T", "t"), ("Z", "Z.crashed")):
            yield f"{name} renamed, {old} to {new}", others | {name.replace(old, new, 1): log.files[name]}
        stem = name.partition(".")[0]
        for ending in (".jsonl", ".crashed.jsonl", ".jsonl.open"):
            yield f"{name} named {ending}", others | {stem + ending: log.files[name]}
            yield f"{name} also named {ending}", log.files | {stem + ending: log.files[name]}
            begun = _joined(log.files[name].splitlines()[:2])
            yield f"the beginning of {name} named {ending}", log.files | {stem + ending: begun}
    for one, other in pairwise(log.segments):
        yield f"{one} and {other} swapped", log.files | {one: log.files[other], other: log.files[one]}


def _members(log: Kept) -> Iterator[tuple[str, Files]]:
    """One member of one line changed, and the chain behind it as it was and made good again."""
    edits: dict[str, tuple[str, Edit]] = {
        "version": ("seg", lambda line: line.update(v=2)),
        "no version": ("seg", lambda line: line.update(v=0)),
        "features": ("seg", lambda line: line.update(ft=["cp", "kr", "tr", "zz"])),
        "no features": ("seg", lambda line: line.update(ft=[])),
        "unsorted features": ("seg", lambda line: line.update(ft=["tr", "kr", "cp"])),
        "features lost": ("seg", lambda line: line.update(ft=["cp", "tr"])),
        "origin": ("seg", lambda line: line.update(log="slp.default/guest")),
        "segment": ("seg", lambda line: line.update(seg=9)),
        "time": ("seg", lambda line: line.update(t="2031-01-01T00:00:00.000000Z")),
        "no time": ("seg", lambda line: line.update(t="2031-13-01T00:00:00.000000Z")),
        "sid": ("seg", lambda line: line.update(sid="0" * 32)),
        "prev.seg": ("seg", lambda line: _in(line, "prev").update(seg=9)),
        "prev.n": ("seg", lambda line: _in(line, "prev").update(n=2)),
        "prev.h": ("seg", lambda line: _in(line, "prev").update(h=base64_text(bytes(32)))),
        "prev.torn": ("seg", lambda line: _in(line, "prev").update(torn=None)),
        "prev.torn.synced": ("seg", lambda line: _in(line, "prev", "torn").update(synced=False)),
        "prev.torn.bytes": ("seg", lambda line: _in(line, "prev", "torn").update(bytes=3)),
        "a tail declared": (
            "seg",
            lambda line: _in(line, "prev").update(torn={"bytes": 1, "sha256": base64_text(bytes(32)), "synced": True}),
        ),
        "a lost tail declared": (
            "seg",
            lambda line: _in(line, "prev").update(torn={"bytes": 1, "sha256": base64_text(bytes(32)), "synced": False}),
        ),
        "no prev": ("seg", lambda line: line.update(prev=None)),
        "algorithm": ("seg", lambda line: line.update(alg="none/SHA-256/Ed25519")),
        "no encryption": ("seg", lambda line: line.update(alg="none/SHA-256/Ed25519", kek=None)),
        "kek": ("seg", lambda line: line.update(kek="0" * 16)),
        "no kek": ("seg", lambda line: line.update(kek=None)),
        "epk": ("seg", lambda line: line.update(epk=base64_text(bytes(32)))),
        "carry.open": ("seg", lambda line: _in(line, "carry").update(open={"R7": ["exc_1", WORKER]})),
        "carry.open emptied": ("seg", lambda line: _in(line, "carry").update(open={})),
        "carry.seen": ("seg", lambda line: _in(line, "carry").update(seen={WORKER: 2})),
        "carry.seen of a stranger": ("seg", lambda line: _in(line, "carry", "seen").update({"0" * 32: 1})),
        "carry.seen emptied": ("seg", lambda line: _in(line, "carry").update(seen={})),
        "edge": ("tr", lambda line: line.update(edge=[base64_text(bytes(32))])),
        "edge emptied": ("tr", lambda line: line.update(edge=[])),
        "kid": ("key", lambda line: line.update(kid="sys.other")),
        "no wk": ("key", lambda line: line.pop("wk")),
        "root": ("cp", lambda line: line.update(root=base64_text(bytes(32)))),
        "note": ("cp", lambda line: line.update(note=log.notes[0])),
        "note's time": ("cp", lambda line: line.update(t="2031-01-01T00:00:00.000000Z")),
        "older checkpoint": ("cp", lambda line: line.update(root=log.notes[0].split("\n")[2], note=log.notes[0])),
        "next key": ("kr", lambda line: line.update(epk=base64_text(bytes(32)))),
        "next key's signer": ("kr", lambda line: line.update(by="owner" if line["by"] == "epoch" else "epoch")),
        "reason": ("end", lambda line: line.update(reason="fsync-error")),
        "another reason": ("end", lambda line: line.update(reason="mood")),
        "lines": ("end", lambda line: line.update(lines=3)),
        "index": ("rec", lambda line: line.update(n=7777)),
        "type": ("rec", lambda line: line.update(ty="llm.other")),
        "ended": ("rec", lambda line: line.update(ty="llm.end")),
        "started": ("rec", lambda line: line.update(ty="llm.start")),
        "counter": ("rec", lambda line: line.update(w=WORKER + ".7777")),
        "counter nought": ("rec", lambda line: line.update(w=WORKER + ".0")),
        "monotonic": ("rec", lambda line: line.update(m=0)),
        "exchange": ("rec", lambda line: line.update(rid="exc_other")),
        "nonce": ("rec", lambda line: line.update(nc=base64_text(bytes(23)))),
        "body's key": ("rec", lambda line: line.update(kid="sys.other")),
        "metadata": ("rec", lambda line: line.update(zz=1)),
    }
    for name in log.segments:
        lines = log.files[name].splitlines()
        for what, (kind, edit) in edits.items():
            places = [at for at, line in enumerate(lines) if line.startswith(b'{"k":"%s"' % kind.encode())]
            for at in places[-1:]:
                if not lines[at].endswith(b"}"):
                    continue
                members = orjson.loads(lines[at])
                try:
                    edit(members)
                except LookupError:
                    continue
                changed = [*lines[:at], orjson.dumps(members), *lines[at + 1 :]]
                yield f"{what} in line {at + 1} of {name}", log.files | {name: _joined(changed)}
                yield f"{what} in line {at + 1} of {name}, chained", log.files | {name: _chained(changed)}


def _in(line: dict[str, object], *names: str) -> dict[str, object]:
    for name in names:
        found = line[name]
        if not isinstance(found, dict):
            raise LookupError(name)  # noqa: TRY004  null, where the edit says nothing
        line = found
    return line


ALTERATIONS = {"bits": _flips, "cuts": _cuts, "lines": _lines, "segments": _segments, "members": _members}


@pytest.mark.parametrize("name", LOGS)
def test_both_verifiers_judge_a_log_alike(kept: dict[str, Kept], name: str) -> None:
    ours, second, said = kept[name].judged(kept[name].files, kept[name].notes)

    assert (ours, second) == (LOGS[name][1],) * 2, said


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("name", LOGS)
def test_both_verifiers_judge_an_altered_log_alike(kept: dict[str, Kept], name: str, alteration: str) -> None:
    log = kept[name]
    apart = []
    for what, files in ALTERATIONS[alteration](log):
        ours, second, said = log.judged(files)
        if ours != second:
            apart.append(f"{what}: {ours} and {second}; {said}")

    assert not apart, "\n".join(apart)


@pytest.mark.parametrize("name", LOGS)
def test_both_verifiers_hold_a_log_alike_to_what_others_keep_of_it(kept: dict[str, Kept], name: str) -> None:
    log = kept[name]
    stranger = next(notes for each, other in kept.items() if each != name and (notes := other.notes))
    apart = []
    for what, anchors in (
        ("its own", log.notes),
        ("those of a log of this name", stranger),
        ("one of another log", [_signed(note, log="slp.default/other") for note in log.notes[:1]]),
        ("one that another signed", [_signed(note) for note in log.notes[-1:]]),
        ("one that knows more", [_signed(note, size=7777) for note in log.notes[:1]]),
    ):
        ours, second, said = log.judged(log.files, anchors)
        if ours != second:
            apart.append(f"{what}: {ours} and {second}; {said}")
    for cut in range(len(log.segments)):
        files = {each: content for each, content in log.files.items() if each not in log.segments[cut:]}
        ours, second, said = log.judged(files, log.notes)
        if ours != second:
            apart.append(f"{cut} segments: {ours} and {second}; {said}")

    assert not apart, "\n".join(apart)


def _signed(note: str, *, log: str | None = None, size: int | None = None) -> str:
    """A checkpoint like this one, by a stranger."""
    real = read_checkpoint(note)
    made = Checkpoint(log or real.log, size or real.size, real.root, real.t)
    return sign_checkpoint(made, Ed25519PrivateKey.generate())


def test_both_verifiers_read_a_log_in_two_directories(kept: dict[str, Kept], tmp_path: Path) -> None:
    log = kept["checkpoints"]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    for name, content in log.files.items():
        ((second if name == log.segments[1] else first) / name).write_bytes(content)
    codes = []

    for change in (
        lambda: None,
        lambda: (second / f"{log.segments[0].partition('.')[0]}.jsonl.open").write_bytes(
            _joined(log.files[log.segments[0]].splitlines()[:3])
        ),
        lambda: shutil.copy(second / log.segments[1], first),
    ):
        change()
        report = verify(first, genesis_public_key=log.owner, also=second)
        codes.append((report.exit_code, second_verifier.verify([first, second], log.owner, [])[0]))

    assert codes == [(0, 0), (0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("alteration", "code"), [("nothing", 0), ("a bit", 1), ("a tail", 3), ("the root of trust", 4)]
)
def test_the_second_verifier_is_a_program(kept: dict[str, Kept], tmp_path: Path, alteration: str, code: int) -> None:
    log = kept["checkpoints"]
    last = log.segments[-1]
    for name, content in log.files.items():
        (tmp_path / name).write_bytes(content)
    if alteration == "a bit":
        (tmp_path / last).write_bytes(log.files[last].replace(b"R0020", b"R0021"))
    elif alteration == "a tail":
        (tmp_path / last).unlink()
    elif alteration == "the root of trust":
        (tmp_path / "genesis.json").unlink()
    (tmp_path / "anchors").write_text("".join(log.notes))

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            second_verifier.__name__,
            tmp_path,
            "--owner",
            log.owner,
            "--anchors",
            tmp_path / "anchors",
        ],
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, f"exit code {code}"), done.stderr
