"""`secure-llm-anchors.service`: the newest checkpoint of the audit log, as a line of standard output (the journal) and of a file.

It is taken from what the writer says of itself, so that this needs no right to read the log. The line is that of
`manage.py audit anchors --last`, and `audit verify --anchors FILE` takes the file. Its place belongs to another user than the
writer's: who takes the writer over can neither change nor remove what stands there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from secure_llm_proxy.audit.format import base64_text
from secure_llm_proxy.audit.notes import Checkpoint, NoteBroken, read_checkpoint
from secure_llm_proxy.audit.state import OLD_S, read_state
from secure_llm_proxy.cli.host.places import places_of

_NAME = "anchors.jsonl"
_LINE_BYTES_MAX = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="anchors", allow_abbrev=False)
    state = os.environ.get("STATE_DIRECTORY")
    parser.add_argument("--writer", type=Path, default=places_of().audit_run / "audit-state.json", metavar="FILE")
    parser.add_argument("--file", type=Path, default=Path(state) / _NAME if state else None, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.file is None:
        parser.error("--file is needed where systemd gives no STATE_DIRECTORY")
    told = read_state(options.writer)
    if told is None or told.age_s > OLD_S:
        word = "has left no word" if told is None else f"has told nothing for {told.age_s:.0f} s"
        print(f"The audit writer {word} in {options.writer}; see: systemctl status secure-llm-audit", file=sys.stderr)
        return 1
    if told.note is None:
        print("The audit writer has signed no checkpoint since its start.", file=sys.stderr)
        return 0
    try:
        checkpoint = read_checkpoint(told.note)
    except NoteBroken as error:
        print(f"What the audit writer tells in {options.writer} is no checkpoint: {error}.", file=sys.stderr)
        return 1
    line = _line(checkpoint, told.note)
    try:
        written = append_new(options.file, line)
    except OSError as error:
        print(f"{options.file} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    if written:
        sys.stdout.write(line.decode())
    return 0


def _line(checkpoint: Checkpoint, note: str) -> bytes:
    told = {"t": checkpoint.t, "log": checkpoint.log, "n": checkpoint.size, "root": base64_text(checkpoint.root)}
    return orjson.dumps({**told, "note": note}, option=orjson.OPT_APPEND_NEWLINE)


def append_new(path: Path, line: bytes) -> bool:
    """The line stands in the file, synced; False when it was the last one already. A last line that a power cut tore goes first.

    Raises `OSError`.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _LINE_BYTES_MAX, max(0, size - _LINE_BYTES_MAX))
        whole = tail[: tail.rfind(b"\n") + 1]
        if len(whole) < len(tail):
            os.ftruncate(descriptor, size - len(tail) + len(whole))
        if whole == line or whole.endswith(b"\n" + line):
            return False
        content = line
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
        _sync_folder(path.parent)
    finally:
        os.close(descriptor)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
