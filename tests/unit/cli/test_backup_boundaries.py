"""What root reads of backups lies in a folder of the audit writer's user: nothing in there leads root elsewhere."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from secure_llm_proxy.cli.host_backup.checking import unpack_log
from secure_llm_proxy.cli.host_backup.sets import Store
from secure_llm_proxy.foundation.errors import OperatorError

STAMP = "20261121T120000Z"
SEGMENT = "00000001-20261121T110000Z"


def manifest() -> dict[str, Any]:
    def stored(path: str) -> dict[str, Any]:
        return {"path": path, "size": 1, "sha256": "0" * 64}

    segment = stored(f"segments/closed/{SEGMENT}.{STAMP}.age")
    return {
        "v": 1, "stamp": STAMP, "release": "0.1.0", "database_kind": "sqlite", "log": "main/host", "log_host": "host",
        "owner_public_key": "A" * 43 + "=", "recipients": ["age1x"], "altered": [],
        "database": stored(f"database/{STAMP}.sqlite.age"), "tail": stored(f"segments/{STAMP}.tar.age"),
        "keys": stored(f"keys/{STAMP}.tar.age"),
        "segments": [{"name": f"{SEGMENT}.jsonl", "size": 1, "sha256": "0" * 64, "changed_ns": 1, "file": segment}],
    }  # fmt: skip


def stored_in(folder: Path, members: dict[str, Any]) -> Store:
    (folder / "sets").mkdir(parents=True)
    (folder / "sets" / f"{STAMP}.json").write_bytes(orjson.dumps(members))
    return Store(folder)


def test_a_manifest_of_ours_is_read(tmp_path: Path) -> None:
    store = stored_in(tmp_path, manifest())

    found = store.find("latest").manifest

    assert (found.log_host, found.segments[0].stem) == ("host", SEGMENT)


@pytest.mark.parametrize(
    "altered",
    [
        lambda m: m.update(log_host="/etc/cron.d"),
        lambda m: m.update(log_host="../elsewhere"),
        lambda m: m.update(log_host=".."),
        lambda m: m.update(log_host=["host"]),
        lambda m: m.update(log="a\x1b[2J"),
        lambda m: m.update(owner_public_key="A\nset=other"),
        lambda m: m["segments"][0].update(name="evil"),
        lambda m: m["segments"][0].update(name="00000002-20261121T110000Z.jsonl"),
        lambda m: m["segments"][0].update(name=f"{SEGMENT}.jsonl.open"),
        lambda m: m["segments"][0].update(changed_ns="1"),
        lambda m: m["keys"].update(path="keys/20261120T120000Z.tar.age"),
        lambda m: m["database"].update(sha256="../.."),
    ],
)  # fmt: skip
def test_a_manifest_that_names_what_no_backup_names_is_refused(
    altered: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    members = manifest()
    altered(members)
    store = stored_in(tmp_path, members)

    with pytest.raises(OperatorError, match="is none of this release's"):
        store.find("latest")


def sealed_tail(store: Store, entry: tarfile.TarInfo, identity: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(entry, io.BytesIO(b"x" * entry.size))
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True, timeout=20)
    recipient = subprocess.run(["age-keygen", "-y", identity], check=True, capture_output=True, text=True, timeout=20)
    (store.directory / "segments").mkdir()
    subprocess.run(
        ["age", "-r", recipient.stdout.strip(), "-o", store.directory / "segments" / f"{STAMP}.tar.age"],
        input=content.getvalue(), check=True, timeout=20,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["a link", "a folder", "outside"])
def test_no_member_of_an_archive_leaves_the_stage(kind: str, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("genesis.json" if kind != "outside" else "0/../../../evil.jsonl.open")
    entry.type = {"a link": tarfile.SYMTYPE, "a folder": tarfile.DIRTYPE}.get(kind, tarfile.REGTYPE)
    entry.linkname = "/etc/passwd" if kind == "a link" else ""
    store = stored_in(tmp_path / "backups", manifest())
    sealed_tail(store, entry, tmp_path / "identity")
    stage = tmp_path / "state" / ".restoring"

    with pytest.raises(OperatorError, match="which is no part of a log"):
        unpack_log(store, store.find("latest").manifest, tmp_path / "identity", stage / "host")

    assert list((stage / "host").iterdir()) == []


def test_a_link_laid_where_the_stage_goes_is_not_followed(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("genesis.json")
    entry.size = 1
    store = stored_in(tmp_path / "backups", manifest())
    sealed_tail(store, entry, tmp_path / "identity")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".restoring").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OperatorError, match=r"\.restoring"):
        unpack_log(
            store, store.find("latest").manifest, tmp_path / "identity", tmp_path / "state" / ".restoring" / "host"
        )

    assert list((tmp_path / "elsewhere").iterdir()) == []
