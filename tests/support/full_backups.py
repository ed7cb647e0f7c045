"""Run as a program: backups onto a small disk of their own.

    unshare [--map-root-user] --mount python -m tests.support.full_backups FOLDER

FOLDER holds an instance (`tests.support.backed_up`). Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.support.backed_up import Instance

_MIB = 1 << 20


def main(folder: Path) -> None:
    instance = Instance(folder, "", "")
    instance.backups.mkdir()
    told: dict[str, object] = {}

    _mount(instance.backups, "40m")
    small = instance.backup()
    told["too_small"] = [small.returncode, "are needed" in small.stderr, instance.stamps()]

    _mount(instance.backups, "90m")
    instance.backed_up()
    told["sets_before"] = instance.stamps()
    before = instance.files()
    # The next dump is told by the last one; then it is so much larger that the disk is full in the middle of it.
    with closing(sqlite3.connect(instance.data / "app.db")) as database:
        database.execute("CREATE TABLE filler (content BLOB)")
        database.executemany("INSERT INTO filler VALUES (?)", ((os.urandom(_MIB),) for _ in range(100)))
        database.commit()
    grown = instance.backup()
    told["grown"] = [grown.returncode, "no space left on device" in grown.stderr]
    told["sets_after"] = instance.stamps()
    told["left_behind"] = sorted(instance.files() - before)
    told["verified"] = instance.verify("--identity", instance.identity).returncode

    subprocess.run(["mount", "-o", "remount,size=300m", str(instance.backups)], check=True, timeout=30)
    told["after_room_was_made"] = instance.backup().returncode
    print(json.dumps(told))


def _mount(place: Path, size: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True, timeout=30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
