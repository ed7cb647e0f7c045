"""Reading what somebody else's folder holds: files, and nothing that could be waited for."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from secure_llm_proxy.foundation.regular_files import NotAFileError, open_file, read_file


def _listen(path: Path) -> None:
    # A socket's name has at most 108 bytes.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _listen, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "genesis.json"
    make(path)

    with pytest.raises(NotAFileError) as raised:
        open_file(path)

    assert (raised.value.filename, raised.value.strerror) == (str(path), "it is no file")


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  names alone

    for _ in range(20):
        with pytest.raises(NotAFileError):
            open_file(tmp_path / "pipe")

    assert len(os.listdir("/proc/self/fd")) < before + 20  # noqa: PTH208


def test_files_and_links_to_files_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\r\nb\0" * 100_000)
    (tmp_path / "link").symlink_to("file")

    assert read_file(tmp_path / "link") == read_file(tmp_path / "file") == b"a\r\nb\0" * 100_000
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "nothing")
