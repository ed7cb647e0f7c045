"""R05. Everything that a hand can do to the files of a log, in a corpus that is made anew over whatever lines the log has today.

The log of the corpus (`make_log`) has a first segment of `lines` lines with checkpoints and key rolls in it, one that a crash tore, one
whose disk failed, and a last one; `anchors` are the checkpoints that were kept elsewhere. Each case changes some files, and says where the
verifier must point: at the changed line or the one behind it, or, where somebody computed every hash behind it anew, somewhere up to the
next checkpoint.
"""

from __future__ import annotations

import base64
import errno
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_llm_proxy.audit import Genesis, initialise, verify
from secure_llm_proxy.audit.appender import Appender, Disk, Rhythm
from secure_llm_proxy.audit.format import leaf
from secure_llm_proxy.audit.keystore import KeyStore
from secure_llm_proxy.audit.merkle import TreeEdge
from secure_llm_proxy.audit.notes import Checkpoint, sign_checkpoint
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.audit.segments import GENESIS_NAME, segments_in
from secure_llm_proxy.audit.verification import Severity, VerificationReport
from tests.faults.outcome import Outcome, Progress, Say
from tests.support.audit_log import KEK, appender, audit_settings, entry

Files = Mapping[str, bytes]
_LINES = 200
_SAMPLED_LINES = 60
_CHUNK = 256
_ROLL_EVERY = 40


@dataclass(frozen=True, slots=True)
class Place:
    """Where a finding must stand: in `file`, between the lines `first` and `last`; `or_files`: anywhere in these will do, too."""

    file: str
    first: int = 0
    last: int = 1 << 30
    or_files: tuple[str, ...] = ()

    def holds(self, file: str, line: int) -> bool:
        # Line 0 is the file as such: no place within a file that has a line to blame.
        return (file == self.file and (self.first <= line <= self.last)) or file in self.or_files


@dataclass(frozen=True, slots=True)
class Case:
    """One tampering: what it is called, the files that differ then (None: gone), and where it must show."""

    name: str
    changed: Mapping[str, bytes | None]
    place: Place
    anchored: bool = False


class _FailingOnce(Disk):
    armed = False

    def sync_data(self, descriptor: int) -> None:
        if self.armed:
            self.armed = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_data(descriptor)


class CorpusLog:
    """A stopped log on disk, and its files in memory: `put` writes a case, `restore` takes it back.

    `anchors` are its checkpoints, `latest_key` is the signing key that its last lines leave in force.
    """

    def __init__(self, genesis: Genesis, anchors: Sequence[str], latest_key: Ed25519PrivateKey) -> None:
        self.directory = genesis.directory
        self.owner = genesis.owner_public_key
        self.log = genesis.log
        self.anchors = anchors
        self.latest_key = latest_key
        self.names = [segment.name for segment in segments_in(self.directory)]
        self.files: Files = {name: (self.directory / name).read_bytes() for name in (*self.names, GENESIS_NAME)}
        for name in self.files:
            (self.directory / name).chmod(0o600)

    def lines_of(self, name: str) -> list[bytes]:
        """Lines of a file with their newlines; a torn tail is the last."""
        return self.files[name].splitlines(keepends=True)

    def put(self, changed: Mapping[str, bytes | None]) -> None:
        for name, content in changed.items():
            if content is None:
                (self.directory / name).unlink()
            else:
                (self.directory / name).write_bytes(content)

    def restore(self, changed: Mapping[str, bytes | None]) -> None:
        for name in changed:
            if name in self.files:
                (self.directory / name).write_bytes(self.files[name])
            else:
                (self.directory / name).unlink()

    def verify(self, *, anchored: bool = False) -> VerificationReport:
        return verify(self.directory, genesis_public_key=self.owner, anchors=self.anchors if anchored else ())

    def judge(self, case: Case) -> str | None:
        """What is wrong with the verifier's answer to this case; None when it is found and located."""
        self.put(case.changed)
        try:
            report = self.verify(anchored=case.anchored)
        finally:
            self.restore(case.changed)
        if report.ok:
            return f"{case.name}: not found"
        worse = [each for each in report.findings if each.severity is not Severity.NOTE]
        if not any(case.place.holds(each.file, each.line) for each in worse):
            return f"{case.name}: found, but not at {case.place}: {[str(each) for each in worse[:3]]}"
        return None


# --- the log ----------------------------------------------------------------------------------------------------------


def make_log(folder: Path, lines: int = _LINES) -> CorpusLog:
    """The log of the corpus, with `lines` lines in its first segment."""
    settings = audit_settings(folder)
    genesis = initialise(settings)
    with closing(KeyStore.open(settings.keys_directory, KeyRing.from_texts(KEK))) as store:
        return _Maker(genesis, store, lines).made()


class _Maker:
    def __init__(self, genesis: Genesis, store: KeyStore, lines: int) -> None:
        self._genesis = genesis
        self._store = store
        self._lines = lines
        self._disk = _FailingOnce()
        self._anchors: list[str] = []
        self._counter = 0
        self._log = self._started()

    def made(self) -> CorpusLog:
        self._fill_first_segment()
        self._log.open_segment()
        self._grow(6)
        # A crash tears the second one …
        os.close(self._log._opened().descriptor)
        with segments_in(self._genesis.directory)[-1].path.open("ab") as torn:
            torn.write(b'{"k":"rec","n":')
        self._log = self._started()
        self._log.open_segment()
        self._grow(4)
        # … and the disk of the third one fails.
        self._disk.armed = True
        self._grow(2)
        self._log.close_segment("rotate")
        self._log.open_segment()
        self._grow(8)
        self._log._roll(self._log._opened())
        # Every start has its end.
        self._grow(4 + self._counter % 2)
        self._log.close_segment("stop")
        return CorpusLog(self._genesis, self._anchors, self._log._epoch.current.private)

    def _fill_first_segment(self) -> None:
        log = self._log
        log.open_segment()
        # The end and its checkpoint come on top.
        while (held := log._opened().lines) < self._lines - 2:
            # A person's first record brings a line of its own.
            left = self._lines - 2 - held
            self._grow(min(2, left), persons=left > 6)
            if held % _ROLL_EVERY >= _ROLL_EVERY - 2 and held < self._lines - 4:
                log._roll(log._opened())
            elif log._opened().lines < self._lines - 2:
                log.keep_rhythm()
        log.close_segment("rotate")

    def _started(self) -> Appender:
        return appender(
            self._genesis,
            disk=self._disk,
            rhythm=Rhythm(lines=max(4, self._lines // 12), dirty_s=1000.0, idle_s=1000.0, epoch_s=1000.0),
            on_checkpoint=lambda _, note: self._anchors.append(note),
            key_store=self._store,
        )

    def _grow(self, records: int, *, persons: bool = True) -> None:
        batch = []
        for _ in range(records):
            self._counter += 1
            # Every third exchange is a person's.
            number = (self._counter + 1) // 2
            whose = {"sub": f"s_{number:016x}"} if persons and number % 3 == 0 else {}
            if self._counter % 2:
                batch.append(entry(self._counter, kind="llm.start", body=bytes(40), mdl="demo", **whose))
            else:
                start = f"R{self._counter - 1:04d}"
                batch.append(entry(self._counter, kind="llm.end", body=bytes(40), sid=start, st="complete", **whose))
        self._log.commit(batch)


# --- the scenarios ----------------------------------------------------------------------------------------------------


def flip_bits(outcome: Outcome, folder: Path, say: Say) -> None:
    """Every bit of the 200-line segment, of the last one and of genesis.json; with `rounds` a sample of about that many, of which each
    line has an equal share and a bit of its newline.
    """
    log = _made(outcome, folder)
    positions = [(log.names[0], bit) for bit in _bits_to_flip(log, outcome)]
    genesis = [(GENESIS_NAME, bit) for bit in range(8 * len(log.files[GENESIS_NAME]))]
    last = [(log.names[-1], bit) for bit in range(8 * len(log.files[log.names[-1]]))]
    choice = random.Random(outcome.seed)
    if outcome.rounds:
        genesis = choice.sample(genesis, min(len(genesis), outcome.rounds // 8))
        last = choice.sample(last, min(len(last), outcome.rounds // 8))
    everything = positions + genesis + last
    outcome.measured["lines"] = len(log.lines_of(log.names[0]))
    outcome.measured["bits_of_the_segment"] = 8 * len(log.files[log.names[0]])
    progress = Progress(say, len(everything))
    chunks = [everything[first : first + _CHUNK] for first in range(0, len(everything), _CHUNK)]
    for done, wrong in enumerate(_in_processes(outcome, folder, log, chunks), 1):
        outcome.broken += wrong
        progress.at(min(done * _CHUNK, len(everything)), f"{len(outcome.broken)} not found or not located")
    outcome.count("flips", len(everything))
    outcome.count("missed", len(outcome.broken))


def tamper(outcome: Outcome, folder: Path, say: Say) -> None:
    """Lines, files and keys: deleted, doubled, swapped, inserted, replaced, cut, replayed, computed and signed anew. With `rounds`, a
    sample of that many cases that has each kind in it.
    """
    log = _made(outcome, folder)
    by_kind: dict[str, list[Case]] = {}
    for case in corpus(log):
        by_kind.setdefault(case.name.partition(":")[0], []).append(case)
    choice = random.Random(outcome.seed)
    cases: list[Case] = []
    for kind, all_of_it in sorted(by_kind.items()):
        share = max(1, outcome.rounds // len(by_kind)) if outcome.rounds else len(all_of_it)
        chosen = all_of_it if share >= len(all_of_it) else choice.sample(all_of_it, share)
        outcome.measured[kind] = len(chosen)
        cases += chosen
    progress = Progress(say, len(cases))
    for number, case in enumerate(cases, 1):
        wrong = log.judge(case)
        if wrong is not None:
            outcome.broken.append(wrong)
        progress.at(number, f"{len(outcome.broken)} not found or not located")
    outcome.count("cases", len(cases))
    outcome.count("missed", len(outcome.broken))


def _made(outcome: Outcome, folder: Path) -> CorpusLog:
    # A sample is drawn from a smaller log, or verifying the rest of it each time would take the whole time.
    log = make_log(folder / "log", _SAMPLED_LINES if outcome.rounds else _LINES)
    report = log.verify(anchored=True)
    outcome.bar(met=report.ok, otherwise=f"the untouched log is refused: {report.findings[:3]}")
    held = len(log.lines_of(log.names[0]))
    outcome.bar(
        met=held == (_SAMPLED_LINES if outcome.rounds else _LINES), otherwise=f"the first segment has {held} lines"
    )
    outcome.bar(met=report.key_rolls > 1 and report.checkpoints > 6, otherwise="the corpus has no rolls or checkpoints")
    return log


def _bits_to_flip(log: CorpusLog, outcome: Outcome) -> Iterator[int]:
    """Bit numbers within the first segment."""
    choice, position = random.Random(outcome.seed), 0
    lines = log.lines_of(log.names[0])
    for line in lines:
        bits = range(8 * position, 8 * (position + len(line)))
        if outcome.rounds:
            share = choice.sample(bits, min(len(bits), max(1, outcome.rounds // len(lines))))
            # The newline is where lines part.
            yield from sorted({*share, bits[-1 - choice.randrange(8)]})
        else:
            yield from bits
        position += len(line)


_mine: CorpusLog | None = None


def _in_processes(
    outcome: Outcome, folder: Path, log: CorpusLog, chunks: Sequence[Sequence[tuple[str, int]]]
) -> Iterator[list[str]]:
    """Judge the chunks, in several processes when all bits are asked for, each on a copy of the log."""
    global _mine  # noqa: PLW0603  what a forked process works on
    _mine = log
    if outcome.rounds:
        yield from map(_flip, chunks)
        return
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0)), _take_copy, [folder]) as pool:
        yield from pool.imap_unordered(_flip, chunks)


def _take_copy(folder: Path) -> None:
    assert _mine is not None
    copy = folder / f"copy-{os.getpid()}"
    shutil.copytree(_mine.directory, copy, symlinks=True)
    _mine.directory = copy


def _flip(chunk: Sequence[tuple[str, int]]) -> list[str]:
    assert _mine is not None
    return [wrong for name, bit in chunk if (wrong := _mine.judge(flipped(_mine, name, bit))) is not None]


def flipped(log: CorpusLog, name: str, bit: int) -> Case:
    content = bytearray(log.files[name])
    content[bit // 8] ^= 1 << bit % 8
    if name == GENESIS_NAME:
        return Case(f"bit {bit} of {name}", {name: bytes(content)}, Place(name))
    line = log.files[name].count(b"\n", 0, bit // 8) + 1
    return Case(f"bit {bit} of {name}, line {line}", {name: bytes(content)}, _near(log, name, line))


def _near(log: CorpusLog, name: str, line: int) -> Place:
    """At the line or the next one; behind the last one, where the next file begins."""
    here = log.names.index(name)
    following = log.names[here + 1 : here + 2] if line >= len(log.lines_of(name)) else []
    return Place(name, line, line + 1, tuple(following))


# --- lines ------------------------------------------------------------------------------------------------------------


def corpus(log: CorpusLog) -> Iterator[Case]:
    for name in log.names:
        yield from _lines_altered(log, name)
    yield from _members_edited(log)
    yield from _computed_anew(log)
    yield from _checkpoints_replayed(log)
    yield from _key_rolls_altered(log)
    yield from _files_altered(log)
    yield from _tails_cut(log)


def _lines_altered(log: CorpusLog, name: str) -> Iterator[Case]:
    # Behind the last line that was synced before a disk failed stands a note for people; the format says that nothing there proves
    # anything, nor is it shown.
    note = log.lines_of(name)[-1:] if note_bytes(log, name) else []
    lines = log.lines_of(name)[: -len(note) or None]
    foreign = log.lines_of(log.names[-1] if name != log.names[-1] else log.names[0])[4]
    count = len(lines)
    for index in range(count):
        where = _near(log, name, index + 1)
        before = replace(where, first=max(0, index))

        def case(kind: str, changed: Sequence[bytes], place: Place = before, at: int = index + 1) -> Case:
            return Case(f"{kind}: {name}, line {at}", {name: b"".join([*changed, *note])}, place, anchored=True)

        yield case("line deleted", [*lines[:index], *lines[index + 1 :]])
        if not note or index + 1 < count:
            yield case("line doubled", [*lines[: index + 1], *lines[index:]])
        yield case("line inserted", [*lines[:index], foreign, *lines[index:]])
        yield case("line replaced", [*lines[:index], foreign, *lines[index + 1 :]])
        yield case("line emptied", [*lines[:index], b"\n", *lines[index + 1 :]])
        yield case("blank added", [*lines[:index], lines[index].replace(b",", b", ", 1), *lines[index + 1 :]])
        if index + 1 < count:
            yield case("lines swapped", [*lines[:index], lines[index + 1], lines[index], *lines[index + 2 :]])
        if index + 7 < count:
            moved = [*lines[:index], *lines[index + 1 : index + 6], lines[index], *lines[index + 6 :]]
            yield case("line moved", moved)


def _members_edited(log: CorpusLog) -> Iterator[Case]:
    """One member of a line changed to another value of the same form, and nothing else: no hash behind it is computed anew."""
    for name in log.names:
        for index, raw in enumerate(log.lines_of(name)):
            if not raw.endswith(b"\n"):
                continue
            members = orjson.loads(raw)
            if members["k"] == "end" and members["reason"] == "fsync-error":
                continue
            for member, value in list(members.items()):
                for number, other in enumerate(_others(value)):
                    edited = orjson.dumps({**members, member: other}) + b"\n"
                    lines = log.lines_of(name)
                    lines[index] = edited
                    yield Case(
                        f"member edited: {name}, line {index + 1}, {members['k']}.{member} #{number}",
                        {name: b"".join(lines)},
                        _near(log, name, index + 1),
                    )


def _others(value: Any) -> Iterator[Any]:  # noqa: ANN401  a value of JSON
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, str):
        yield _other_text(value)
    elif isinstance(value, list):
        yield value[:-1] if value else ["x"]
        if value:
            yield [*value[:-1], _other_text(value[-1])]
    elif isinstance(value, dict):
        for name, inner in value.items():
            for other in _others(inner):
                yield {**value, name: other}
        if value:
            yield dict(list(value.items())[:-1])
        yield {**value, "0" * 32: 7}
    else:
        yield 1


def _other_text(value: str) -> str:
    """The same length and alphabet, one character on."""
    for place, letter in enumerate(value):
        if letter.isdigit():
            return value[:place] + str((int(letter) + 1) % 10) + value[place + 1 :]
    return ("b" if value[:1] == "a" else "a") + value[1:]


# --- everything behind it computed anew -------------------------------------------------------------------------------


def computed_anew(log: CorpusLog, segments: Sequence[Sequence[dict[str, Any]]], key: Ed25519PrivateKey | None) -> Files:
    """Every index, hash, edge, count and root as they must be; with `key` also every checkpoint signed by it."""
    tree, before, files = TreeEdge(), b"", {}
    previous: dict[str, Any] | None = None
    for name, lines in zip(log.names, segments, strict=True):
        content, edge = [], tree.hashes
        for number, source in enumerate(lines):
            members = dict(source)
            if members["k"] == "seg":
                members["prev"] = previous and {**previous, "torn": (members["prev"] or {}).get("torn")}
            members["n"] = tree.size
            if "p" in members:
                members["p"] = _b64(before)
            if members["k"] == "tr":
                members["edge"] = [_b64(each) for each in edge]
            elif members["k"] == "end":
                members["lines"] = number + 1
            elif members["k"] == "cp":
                checkpoint = Checkpoint(log.log, tree.size, tree.root(), members["t"])
                members["root"] = _b64(checkpoint.root)
                if key is not None:
                    members["note"] = sign_checkpoint(checkpoint, key)
            line = orjson.dumps(members)
            content.append(line + b"\n")
            before = leaf(line)
            tree.append(before)
        previous = {"seg": lines[0]["seg"], "n": tree.size - 1, "h": _b64(before)}
        files[name] = b"".join(content) + log.files[name][_end_of_lines(log, name) :]
    return files


def members_of(log: CorpusLog) -> list[list[dict[str, Any]]]:
    """Every line that belongs to the log, by file."""
    return [
        [orjson.loads(raw) for raw in log.files[name][: _end_of_lines(log, name)].splitlines()] for name in log.names
    ]


def _end_of_lines(log: CorpusLog, name: str) -> int:
    """Where the part of the file ends that belongs to the log: before a torn tail or the note of a failed disk."""
    position = 0
    for raw in log.lines_of(name):
        if not raw.endswith(b"\n") or b'"reason":"fsync-error"' in raw:
            break
        position += len(raw)
    return position


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _computed_anew(log: CorpusLog) -> Iterator[Case]:
    """Who can compute, and who has today's key as well: each record of the first segment altered, taken out, and one put in."""
    pristine = members_of(log)
    first = pristine[0]
    for key, kind in ((None, "computed anew"), (log.latest_key, "signed anew with today's key")):
        for index, members in enumerate(first):
            if members["k"] != "rec":
                continue
            altered = {**members, "rid": "X" + str(members["rid"])[1:]}
            for change, lines in (
                ("altered", [*first[:index], altered, *first[index + 1 :]]),
                ("taken out", [*first[:index], *first[index + 1 :]]),
                ("put in", [*first[:index], {**altered, "w": "22" * 16 + ".1", "id": "R9999"}, *first[index:]]),
            ):
                changed = computed_anew(log, [lines, *pristine[1:]], key)
                yield Case(
                    f"{kind}: line {index + 1} {change}",
                    changed,
                    # Today's key fits no checkpoint from before the last roll; who has none betrays himself at the next.
                    Place(log.names[0], 1 if key else index + 1, _next_checkpoint(first, index) + 1),
                )


def _next_checkpoint(lines: Sequence[Mapping[str, Any]], index: int) -> int:
    """Line number of the first checkpoint behind `index`."""
    return next(number for number in range(index + 1, len(lines)) if lines[number]["k"] == "cp") + 1


def _checkpoints_replayed(log: CorpusLog) -> Iterator[Case]:
    """An earlier checkpoint's line or note in the place of a later one, alone and with everything behind it computed anew."""
    pristine = members_of(log)
    first = pristine[0]
    places = [index for index, members in enumerate(first) if members["k"] == "cp"]
    for earlier in places:
        for later in places:
            if earlier == later:
                continue
            lines = log.lines_of(log.names[0])
            lines[later] = lines[earlier]
            near = _near(log, log.names[0], later + 1)
            yield Case(f"checkpoint replayed: {earlier + 1} at {later + 1}", {log.names[0]: b"".join(lines)}, near)
            noted = [*first[:later], {**first[later], "note": first[earlier]["note"]}, *first[later + 1 :]]
            changed = computed_anew(log, [noted, *pristine[1:]], None)
            yield Case(f"note replayed: {earlier + 1} at {later + 1}", changed, near)
        without = [*first[:earlier], *first[earlier + 1 :]]
        yield Case(
            f"checkpoint taken out: {earlier + 1}",
            computed_anew(log, [without, *pristine[1:]], None),
            Place(log.names[0], earlier, (1 << 30)),
        )


def _key_rolls_altered(log: CorpusLog) -> Iterator[Case]:
    """Taken out, replaced by an attacker's own, signed by today's key, doubled; everything behind computed and signed anew."""
    pristine = members_of(log)
    stranger = Ed25519PrivateKey.generate()
    for position, lines in enumerate(pristine):
        for index, members in enumerate(lines):
            if members["k"] != "kr":
                continue
            own = {**members, "epk": _b64(stranger.public_key().public_bytes_raw())}
            mine = {**own, "sig": _b64(stranger.sign(b"mine"))}
            by_owner = {**mine, "by": "owner"}
            for kind, changed in (
                ("taken out", [*lines[:index], *lines[index + 1 :]]),
                ("replaced", [*lines[:index], own, *lines[index + 1 :]]),
                ("replaced and signed", [*lines[:index], mine, *lines[index + 1 :]]),
                ("replaced in the owner's name", [*lines[:index], by_owner, *lines[index + 1 :]]),
                ("doubled", [*lines[: index + 1], *lines[index:]]),
            ):
                for key, who in ((None, "nobody"), (log.latest_key, "today's key"), (stranger, "a stranger's key")):
                    segments = [*pristine[:position], changed, *pristine[position + 1 :]]
                    yield Case(
                        f"key roll {kind}: {log.names[position]}, line {index + 1}, checkpoints by {who}",
                        computed_anew(log, segments, key),
                        # Whoever signs anew shows at the first checkpoint of all.
                        Place(log.names[position], index, or_files=tuple(log.names) if key else ()),
                    )


# --- files ------------------------------------------------------------------------------------------------------------


def _files_altered(log: CorpusLog) -> Iterator[Case]:
    names, files = log.names, log.files

    def case(kind: str, changed: Mapping[str, bytes | None], *places: str) -> Case:
        return Case(f"{kind}: {', '.join(places)}", changed, Place(places[0], or_files=places), anchored=True)

    for position, name in enumerate(names):
        following = names[position + 1 : position + 2]
        neighbours = (name, *following, *names[max(0, position - 1) : position])
        yield case("segment removed", {name: None}, *neighbours)
        yield case("segment emptied", {name: b""}, *neighbours)
        number = int(name[:8])
        for other in names[position + 1 :]:
            yield case("segments swapped", {name: files[other], other: files[name]}, name, other, *following)
        renamed = f"{number + 7:08d}{name[8:]}"
        yield case("segment renumbered", {name: None, renamed: files[name]}, renamed, *neighbours)
        doubled = f"{number:08d}-20200101T000000Z{name[name.index('.') :]}"
        yield case("segment doubled", {doubled: files[name]}, doubled, *neighbours)
        for state in (".jsonl", ".crashed.jsonl", ".jsonl.open"):
            other = name[: name.index(".")] + state
            if other != name and state == ".jsonl":
                yield case("crashed segment named closed", {name: None, other: files[name]}, other, *following)
        lines = log.lines_of(name)
        yield case("older copy of a segment", {name: b"".join(lines[: len(lines) // 2])}, *neighbours)
        if not note_bytes(log, name):
            yield case("bytes added behind the last line", {name: files[name] + b'{"k":"rec"'}, *neighbours)
            yield case("a line added behind the last one", {name: files[name] + lines[-1] + b"\n"}, *neighbours)
        yield case("bytes added before the first line", {name: b"\n" + files[name]}, *neighbours)


def _tails_cut(log: CorpusLog) -> Iterator[Case]:
    """The last segment cut at every byte, under its own name and as if it were still open; earlier ones too."""
    for position, name in enumerate(log.names):
        content = log.files[name]
        lines = log.lines_of(name)
        following = tuple(log.names[position + 1 : position + 2])
        cut_off = 0 if position < len(log.names) - 1 else len(lines[-1])
        unseen = note_bytes(log, name)
        for size in range(len(content)):
            if unseen and size >= len(content) - unseen:
                continue
            place = Place(name, or_files=following)
            yield Case(f"tail cut: {name} at byte {size}", {name: content[:size]}, place, anchored=True)
            opened = name[: name.index(".")] + ".jsonl.open"
            if not following and size != len(content) - cut_off:
                # All but the checkpoint line that the anchor repeats: nothing is missing then.
                changed: dict[str, bytes | None] = {name: None, opened: content[:size]}
                yield Case(f"tail cut and named open: byte {size}", changed, Place(opened), anchored=True)


def note_bytes(log: CorpusLog, name: str) -> int:
    """Length of the note of a failed disk, which proves nothing and may be cut."""
    return len(log.files[name]) - _end_of_lines(log, name) if b"fsync-error" in log.files[name] else 0
