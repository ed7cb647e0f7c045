"""The product's site as nginx has it: where it listens, under which names, with which certificate, and where it logs.

Read from nginx's own files, which every user may read; found by the upstream that they name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

_MARK = "slp_workers"
_FOLDERS = ("etc/nginx/sites-enabled", "etc/nginx/conf.d")
_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Site:
    """`names` may be empty. Hosts are addresses of this machine at which to ask."""

    path: Path
    text: str
    names: tuple[str, ...]
    tls: tuple[str, int] | None
    plain: tuple[str, int] | None
    certificate: Path | None
    access_log: Path | None

    @property
    def name(self) -> str:
        """A name that the site answers to."""
        return next((name for name in self.names if not set(name) & set("*~_")), "localhost")


def find_site(machine: Path) -> Site | None:
    """None where nginx has no site of ours. Raises `OSError` for a file that may not be read."""
    for folder in _FOLDERS:
        place = machine / folder
        if not place.is_dir():
            continue
        for path in sorted(place.iterdir()):
            if not path.is_file():
                continue
            with path.open(encoding="utf-8", errors="replace") as stream:
                text = stream.read(_BYTES_MAX)
            if re.search(rf"^\s*upstream\s+{_MARK}\b", text, re.MULTILINE):
                return read_site(path, text)
    return None


def read_site(path: Path, text: str) -> Site:
    """A comment's words are no directives."""
    bare = re.sub(r"(^|\s)#.*$", "", text, flags=re.MULTILINE)
    listens = [words.split() for words in re.findall(r"^\s*listen\s+([^;]+);", bare, re.MULTILINE)]
    names = [name for words in re.findall(r"^\s*server_name\s+([^;]+);", bare, re.MULTILINE) for name in words.split()]
    return Site(
        path=path,
        text=bare,
        names=tuple(dict.fromkeys(name for name in names if name != "_")),
        tls=next((found for words in listens if "ssl" in words and (found := _address(words[0]))), None),
        plain=next((found for words in listens if "ssl" not in words and (found := _address(words[0]))), None),
        certificate=_path(bare, "ssl_certificate"),
        access_log=_path(bare, "access_log"),
    )


def _path(text: str, directive: str) -> Path | None:
    found = re.search(rf"^\s*{directive}\s+(/[^\s;]+)", text, re.MULTILINE)
    return Path(found.group(1)) if found else None


def _address(listen: str) -> tuple[str, int] | None:
    """Where a client on this machine reaches it; None for a unix socket."""
    if listen.startswith("unix:"):
        return None
    if listen.isdigit():
        return "127.0.0.1", int(listen)
    host, _, port = listen.rpartition(":") if not listen.endswith("]") else (listen, "", "80")
    host = (host or listen).strip("[]")
    if not port.isdigit():
        host, port = listen, "80"
    if host in {"*", "0.0.0.0", ""}:  # noqa: S104  compared with, not bound to
        return "127.0.0.1", int(port)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host, int(port)
    if address.is_unspecified:
        return ("::1" if address.version == 6 else "127.0.0.1"), int(port)  # noqa: PLR2004
    return host, int(port)
