"""A second verifier of the audit log, written after docs/audit-format.md alone: it shares no code with the product.

`python -m tests.support.second_verifier DIR [DIR2] [--owner KEY] [--anchors FILE]`; exit codes as in the document.
It stops at the first tampering, opens no bodies, and calls a log undecidable whose first segments are retired.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TAMPERED, INCOMPLETE, UNDECIDABLE = 1, 3, 4
NAME = re.compile(r"([0-9]{8,})-([0-9]{8}T[0-9]{6}Z)(\.jsonl|\.crashed\.jsonl|\.jsonl\.open)")
FAILED = re.compile(rb'\{"k":"end",.*"reason":"fsync-error".*')
BEGUN = re.compile(rb'(\{"k":"(seg|tr|key)",.*\}\n)+')
SEALED, CLEAR = "XAES-256-GCM/SHA-256/Ed25519", "none/SHA-256/Ed25519"
FORMS = {
    "seg": "k v ft log seg sid n t prev alg epk kek carry", "tr": "k n t edge p", "cp": "k n t root note p",
    "kr": "k n t epk by sig p", "key": "k n t kid kc wk p", "end": "k n t reason lines p",
    "rec": "k n t m w ty ev id rid", "GENESIS": "v log opk epk sig",
    "NO METADATA": "k n t m w kid nc p ct pt z v seg log prev root note sig",
}  # fmt: skip
# What the members are as JSON. Strict base64 leaves no stray bits in its last digit.
N, ID, HEX, KIND = "(?:0|[1-9][0-9]*)", '"[0-9A-Za-z_-]{1,64}"', '"[0-9a-f]{32}"', '"[a-z][a-z0-9]{0,7}"'
B, TWO, ONE, W = "[0-9A-Za-z+/]", "[AEIMQUYcgkosw048]=", "[AQgw]==", "[0-9A-Za-z_.-]{1,64}"
NOTE = re.compile(rf"([^\s+]+)\n({N})\n(\S{{44}})\n(\S+)\n\n— \1 ({B}{{90}}{TWO})\n")
HASH, B64 = f'"{B}{{42}}{TWO}"', f'(?:{B}{{4}})*(?:{B}{{2}}{TWO}|{B}{ONE})?"'
TORN = rf'{{"bytes":{N},"sha256":{HASH},"synced":(?:true|false)}}'
METADATA = r'\{("[a-z][a-z0-9_]{0,31}":("([^"\\]|\\.)*+"|-?[0-9]+|true|false|null),?)*\}'
PATTERNS = {
    "k": KIND, "v": "1", "ft": rf"\[(?:{KIND},?)*\]", "log": f'"slp[.]{W}/{W}"', "seg": N, "sid": HEX, "n": N,
    "t": '"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z"', "kek": 'null|"[0-9a-f]{16}"',
    "prev": rf'null|{{"seg":{N},"n":{N},"h":{HASH},"torn":(?:null|{TORN})}}', "epk": HASH, "opk": HASH, "p": HASH,
    "carry": rf'{{"open":{{(?:{ID}:\[{ID},{HEX}\],?)*}},"seen":{{(?:{HEX}:{N},?)*}}}}', "edge": rf"\[(?:{HASH},?)*\]",
    "root": HASH, "note": '".+"', "by": '"(epoch|owner)"', "sig": f'"{B}{{85}}{ONE}"', "lines": N, "kc": HASH, "m": N,
    "reason": '"(rotate|stop)"', "kid": f'"{W}"', "wk": f'"{B}{{80}}"', "id": ID, "rid": ID,
    "w": '"[0-9a-f]{32}[.][1-9][0-9]{0,18}"', "ty": r'"[a-z]{1,16}\.[a-z_]{1,24}"', "ev": '"[A-Z][A-Z_]{0,63}"',
    "alg": f'"({SEALED}|{CLEAR})"', "nc": f'"{B}{{32}}"', "pt": f'"{B64}', "ct": f'"(?=.{{24}}){B64}',
}  # fmt: skip


class Stop(Exception):
    """Severity and sentence of a finding behind which nothing can be read, or need be."""


def need(condition: object, what: str = "is not in its form") -> None:
    if not condition:
        raise Stop(TAMPERED, what)


def digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def text_of(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def compact(raw: bytes) -> dict[str, Any]:
    least, most = -(1 << 63), (1 << 64) - 1
    try:
        value = json.loads(
            raw.decode(), parse_int=lambda text: min(max(int(text), least), most), parse_float=need, parse_constant=need
        )
        need(isinstance(value, dict) and text_of(value).encode() == raw and len(raw) <= 1 << 20)
    except (ValueError, RecursionError):
        raise Stop(TAMPERED, "is no JSON in compact form") from None
    return dict(value)


def held(line: dict[str, Any], form: str, *left_out: str) -> None:
    need(list(line) == [name for name in form.split() if name not in left_out])
    need(all(re.fullmatch(PATTERNS[name], text_of(value)) for name, value in line.items()))


def parse(raw: bytes, features: list[str]) -> dict[str, Any]:
    line = compact(raw)
    kind, names = str(line.get("k")), list(line)
    if kind == "seg" and type(line.get("v")) is int and line["v"] > 1:
        raise Stop(UNDECIDABLE, "is of a later version")
    need(kind in {"seg", "key", "rec", "end", *features}, "is of a kind that its segment does not name")
    if kind == "rec":
        head, tail = 9 if "ev" in line else 8, 4 if "ct" in line else 2
        held({name: line[name] for name in names[:head]}, FORMS["rec"], *({"ev"} - line.keys()))
        held({name: line[name] for name in names[-tail:]}, "kid nc p ct" if "ct" in line else "p pt")
        meta = {name: line[name] for name in names[head:-tail]}
        need(len(meta) + head - 5 <= 64 and len(text_of(meta).encode()) <= 1 << 14)
        need(re.fullmatch(METADATA, text_of(meta)) and not meta.keys() & FORMS["NO METADATA"].split())
        need(line["ty"] != "llm.end" or re.fullmatch(ID, text_of(meta.get("sid"))))
    elif kind in FORMS:
        held(line, FORMS[kind], *({"wk"} - line.keys()))
    else:
        held({name: line.get(name) for name in "np"}, "n p")
    if kind == "seg":
        need(line["ft"] == sorted(set(line["ft"])) and (line["kek"] is None) == (line["alg"] == CLEAR))
    return line


def verified(key: str, signature: str, *values: object) -> None:
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key))
        public.verify(base64.b64decode(signature), "".join(f"{value}\n" for value in values).encode())
    except InvalidSignature:
        raise Stop(TAMPERED, "is not signed as it says") from None


def note_signed(note: str, key: str) -> tuple[str, ...]:
    """Log, size, root and time of a note in its one form that `key` has signed."""
    need(found := NOTE.fullmatch(note), "holds no checkpoint")
    assert found
    signature, start = base64.b64decode(found[5]), digest(found[1].encode(), b"\n\1", base64.b64decode(key))[:4]
    need(signature[:4] == start, "was signed by another key")
    verified(key, b64(signature[4:]), *found.groups()[:4])
    return found.groups()[:4]


class Log:
    def __init__(self, anchors: list[str]) -> None:
        self.place, self.n, self.h, self.epoch, self.complete = "", 0, b"", "", False
        self.tail: bytes | None = None
        self.edge, self.features, self.genesis = list[bytes](), list[str](), dict[str, Any]()
        self.opened, self.seen, self.parts = dict[str, list[str]](), dict[str, int](), dict[str, list[object]]()
        self.findings, self.anchors = list[tuple[int, str]](), [(note, *note.split("\n")[:2]) for note in anchors]

    def say(self, severity: int, what: str) -> None:
        self.findings.append((severity, f"{self.place}: {what}"))

    def read(self, directories: list[Path], owner: str | None) -> None:
        self.place = "genesis.json"
        if (path := directories[0] / self.place).exists():
            raw = path.read_bytes()
            self.genesis = compact(raw.removesuffix(b"\n"))
            held(self.genesis, FORMS["GENESIS"])
            _, log, opk, self.epoch, signature = self.genesis.values()
            verified(opk, signature, "secure-llm-proxy audit genesis v1", log, opk, self.epoch)
            need(raw.endswith(b"\n") and owner in (None, opk), "has another owner")
        else:
            self.say(UNDECIDABLE, "is missing")
        files = sorted((int(found[1]), path.name, path) for directory in directories for path in directory.iterdir()
                       if (found := NAME.fullmatch(path.name)))  # fmt: skip
        known = [b'"v":1,' in path.read_bytes()[:40] for _, _, path in files]
        need(known == sorted(known, reverse=True), "a segment of an earlier version follows")
        numbers = [number for number, _, _ in files]
        for each in [each for each in files if each[1].endswith(".open") and numbers.count(each[0]) > 1]:
            if BEGUN.fullmatch(each[2].read_bytes()):
                files.remove(each)
        if files and files[0][0] > 1 and (directories[0] / "retired.jsonl").exists():
            self.say(UNDECIDABLE, "its first segments are retired")
            files = []
        for at, (number, self.place, path) in enumerate(files, 1):
            need(number == at, "a segment is missing before it, or it stands there twice")
            self.segment(number, path, files[at][2].read_bytes().partition(b"\n")[0] if at < len(files) else None)
        for _, log, size in self.anchors:
            if log == self.genesis.get("log", log) and int(size) > self.n:
                self.say(INCOMPLETE, "an anchor knows more lines")
        if self.opened and self.complete:
            self.say(INCOMPLETE, "exchanges have no end")

    def segment(self, number: int, path: Path, following: bytes | None) -> None:
        *raws, rest = path.read_bytes().split(b"\n")
        before, self.prior, self.tail = self.tail, list(self.edge), None
        self.seg, self.ended, self.m, self.kids, self.sealed = number, "", 0, set[str](), False
        closed, torn = path.name.endswith("Z.jsonl"), bool(rest) and not FAILED.fullmatch(rest)
        if following is not None and not closed:
            prev = parse(following, []).get("prev")
            known = prev["n"] + 1 - self.n if prev else 0
            need(0 < known <= len(raws), "the next segment continues no line of it")
            self.tail, raws = b"\n".join([*raws[known:], rest]), raws[:known]
        for at, raw in enumerate(raws, 1):
            self.place = f"{path.name}:{at}"
            try:
                line = parse(raw, self.features if at > 1 else [])
            except Stop as stop:
                if stop.args[0] != UNDECIDABLE and following is None and not closed:
                    torn = not FAILED.fullmatch(raw)
                    break
                raise
            need((line["k"] == "seg") == (at == 1), "a segment begins here, or does not")
            if at == 1:
                self.at_seg(line, path.name, before)
            self.take(line, raw, at)
        self.complete = self.ended == "cp" or (self.ended == "end" and "cp" not in self.features)
        need(not (closed and self.complete and rest), "something follows its end")
        need(not closed or self.complete or following is None, "its end is missing")
        if following is None and (not self.complete if closed else torn or not raws):
            self.say(INCOMPLETE, "the log ends before its end")

    def take(self, line: dict[str, Any], raw: bytes, at: int) -> None:
        kind = line["k"]
        need((kind == "tr") == (at == 2 and bool(self.features)), "the tree is not in the second line")
        need(not self.ended or (self.ended, kind) == ("end", "cp"), "something follows the end")
        need(line["n"] == self.n, "has another index than its place")
        need(at == 1 or line["p"] == b64(self.h), "does not continue the line before it")
        self.ended = kind if kind == "end" or self.ended else ""
        if kind == "tr":
            need(line["edge"] == [b64(each) for each in self.prior], "the tree before it is another")
        elif kind == "cp":
            need(line["root"] == self.root(), "the tree before it has another root")
            said = (self.genesis["log"], str(line["n"]), line["root"], line["t"])
            need(note_signed(line["note"], self.epoch) == said, "its note says something else")
        elif kind == "kr":
            _, n, t, epk, by, signature, p = line.values()
            key = self.genesis.get("opk") if by == "owner" else self.epoch
            if key:
                verified(key, signature, "secure-llm-proxy audit key roll v1", self.genesis["log"], n, p, epk, by, t)
            self.epoch = epk
        elif kind == "key":
            need(line["kid"] not in self.kids, "announces a key twice")
            self.kids.add(line["kid"])
        elif kind == "rec":
            self.at_rec(line)
        elif kind == "end":
            need(line["lines"] == at, "counts other lines")
        elif kind != "seg":
            self.say(UNDECIDABLE, f"is of the later kind {kind}")
        self.h = grown = digest(b"\0", raw)
        size, self.n = self.n, self.n + 1
        while size & 1:
            grown, size = digest(b"\1", self.edge.pop(), grown), size >> 1
        self.edge.append(grown)
        for note, log, told in self.anchors:
            if int(told) == self.n and log == self.genesis["log"]:
                need(note_signed(note, self.epoch)[2] == self.root(), "an anchor has another root")

    def root(self) -> str:
        return b64(functools.reduce(lambda right, left: digest(b"\1", left, right), reversed(self.edge)))

    def at_seg(self, line: dict[str, Any], name: str, tail: bytes | None) -> None:
        stamp = f"{line['seg']:08d}-" + re.sub("[-:]", "", line["t"][:19]) + "Z."
        need(name.startswith(stamp) and line["seg"] == self.seg, "its name says otherwise")
        if not self.genesis:
            self.genesis, self.epoch = {"log": line["log"]}, line["epk"]
        need(line["log"] == self.genesis["log"] and line["epk"] == self.epoch, "is of another log or epoch key")
        need(set(self.features) <= set(line["ft"]), "has lost features")
        torn = line["prev"]["torn"] if line["prev"] else None
        prev = {"seg": self.seg - 1, "n": self.n - 1, "h": b64(self.h), "torn": torn} if self.n else None
        need(line["prev"] == prev, "continues another line")
        if torn is None or torn["synced"] or tail is None:
            said = {"bytes": len(tail), "sha256": b64(digest(tail)), "synced": True} if tail else None
            need(torn == said, "the tail before it is not the declared one")
            if tail and b"\n" in tail:
                self.say(INCOMPLETE, "whole lines were set aside before it")
        need(line["carry"]["open"] == self.opened, "carries other open exchanges")
        need(line["carry"]["seen"].items() <= self.seen.items(), "carries other counters")
        self.features, self.sealed = line["ft"], line["alg"] == SEALED

    def at_rec(self, line: dict[str, Any]) -> None:
        worker, _, counter = line["w"].partition(".")
        need(int(counter) > self.seen.get(worker, 0) and line["m"] >= self.m, "stands behind a later record")
        self.seen[worker], self.m = int(counter), line["m"]
        need(("ct" in line) == self.sealed, "is not sealed as its segment says")
        need(not self.sealed or line["kid"] in self.kids, "is sealed by a key that was not announced")
        if line["ty"] == "llm.start":
            need(line["id"] not in self.opened, "starts an exchange that is open")
            self.opened[line["id"]] = [line["rid"], worker]
        elif line["ty"] == "llm.end":
            need(self.opened.pop(line["sid"], [line["rid"]])[0] == line["rid"], "ends another exchange than it says")
        elif line["ty"] == "llm.part":
            self.parts.setdefault(str(line.get("pt_of")), []).append((line.get("seq"), line.get("last")))
        if isinstance(count := line.get("parts"), int):
            whole = [(seq, seq == count - 1) for seq in range(count)]
            if self.parts.pop(line["id"], []) != whole:
                self.say(INCOMPLETE, "lacks parts of its body")


def verify(directories: list[Path], owner_key: str | None, anchors: list[str]) -> tuple[int, list[str]]:
    """The exit code and the findings, "file:line: what"."""
    log = Log(anchors)
    try:
        log.read(directories, owner_key)
    except Stop as stop:
        log.say(*stop.args)
    found = {severity for severity, _ in log.findings}
    code = next((each for each in (TAMPERED, UNDECIDABLE, INCOMPLETE) if each in found), 0)
    return code, [what for _, what in log.findings]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Verify an audit log.")
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--owner")
    parser.add_argument("--anchors", type=lambda name: Path(name).read_text("utf-8"), default="")
    given = parser.parse_args()
    exit_code, told = verify(given.directories, given.owner, [found[0] for found in NOTE.finditer(given.anchors)])
    print(*told, f"exit code {exit_code}", sep="\n")
    raise SystemExit(exit_code)
