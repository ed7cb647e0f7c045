"""One file of deploy/nginx with its @NAMES@ filled in, on standard output; runs on a bare host with Python 3.11 alone.

A value that could end a directive, open a block or name a variable of nginx is refused, and so is a name that no template
knows. Nothing is printed unless everything could be filled in.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

# `http2 on;` came, and `listen … http2` became a warning, with this version.
_HTTP2_DIRECTIVE_SINCE = (1, 25, 1)
_PLACEHOLDER = re.compile(r"@([A-Z0-9_]+)@")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+=,:-]*")
_PUBLIC_URL = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::([0-9]{1,5}))?")
# Above the product's own limit on a body, so that the product answers, and records, whom it refuses by a little.
_BODY_MARGIN_BYTES = 1 << 20
_LISTEN = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?([0-9]{1,5})")


class Unrenderable(ValueError):
    """What cannot be filled in, and why; in a sentence for the operator."""


def parse_version(text: str) -> tuple[int, int, int]:
    """The version in `1.22.1` or in what `nginx -v` prints (`nginx version: nginx/1.22.1`)."""
    found = re.fullmatch(r"(?:nginx version: )?(?:nginx/)?(\d+)\.(\d+)\.(\d+)(?: .*)?", text.strip())
    if found is None:
        raise Unrenderable(f"{text!r} is no version of nginx; it looks like 1.22.1")
    major, minor, patch = (int(part) for part in found.groups())
    return major, minor, patch


def render(template: Path, values: Mapping[str, str], *, version: tuple[int, int, int]) -> str:
    """The template's text with `values` in their places; comments stay as they are.

    A line that holds a list (of addresses to listen on, of sockets) is repeated for each of its items. Raises Unrenderable.
    """
    filled = {name: _checked(name, value) for name, value in {**_DEFAULTS, **values}.items()}
    directive = version >= _HTTP2_DIRECTIVE_SINCE
    filled["HTTP2_ON_LISTEN"] = [""] if directive else [" http2"]
    filled["HTTP2"] = ["http2 on;"] if directive else [""]
    filled["BODY_BYTES_MAX"] = [str(int(filled["MAX_REQUEST_SIZE"][0]) + _BODY_MARGIN_BYTES)]
    # Said of each socket.
    room = max(1, requests_at_once(int(filled["NGINX_CONNECTIONS"][0])) // len(filled.get("SOCKET", [""])))
    filled["REQUESTS_AT_ONCE"] = [str(min(room, int(filled["SERVICE_CONNECTIONS"][0])))]
    rendered: list[str] = []
    for number, line in enumerate(template.read_text("utf-8").splitlines(keepends=True), start=1):
        if line.lstrip().startswith("#"):
            rendered.append(line)
            continue
        try:
            rendered += _lines(line, filled)
        except Unrenderable as error:
            raise Unrenderable(f"{template}, line {number}: {error}") from None
    return "".join(rendered)


def requests_at_once(nginx_connections: int) -> int:
    """How many requests one process of nginx may bring to the workers: each takes a connection of its client and one to a worker,
    and as many again are kept for clients who begin, or are told that there is no room. At least 1.
    """
    return max(1, nginx_connections // 3)


def _lines(line: str, filled: Mapping[str, list[str]]) -> list[str]:
    names = _PLACEHOLDER.findall(line)
    for name in names:
        if name not in filled:
            raise Unrenderable(
                f"@{name}@ is not filled in; give it with --set {name}=..."
                if name in _KINDS
                else f"@{name}@ is a name that nobody knows"
            )
    times = max((len(filled[name]) for name in names), default=1)
    rendered = []
    for turn in range(times):
        words = {name: filled[name][min(turn, len(filled[name]) - 1)] for name in names}
        rendered.append(_PLACEHOLDER.sub(partial(_word, words), line))
    return rendered


def _word(words: Mapping[str, str], found: re.Match[str]) -> str:
    return words[found[1]]


def _checked(name: str, value: str) -> list[str]:
    if name not in _KINDS:
        raise Unrenderable(f"no template has a name {name}; known are {', '.join(sorted(_KINDS))}")
    return _KINDS[name](name, value)


def _server_names(name: str, value: str) -> list[str]:
    for each in _words(name, value):
        if _HOST_NAME.fullmatch(each) is None and not _is_bracketed_address(each):
            raise Unrenderable(f"{name}: {each!r} is no host name (patterns, ports and schemes do not belong here)")
    return [" ".join(value.split(" "))]


def _public_url(name: str, value: str) -> list[str]:
    found = _PUBLIC_URL.fullmatch(value)
    if found is None or (found[2] and not _is_port(found[2])):
        raise Unrenderable(
            f"{name}: {value!r} is not like https://llm.example.org or https://llm.example.org:8443 (no path)"
        )
    return [value]


def _addresses(name: str, value: str) -> list[str]:
    for each in _words(name, value):
        found = _LISTEN.fullmatch(each)
        if found is None or not _is_port(found[2]) or not (found[1] is None or _is_address(found[1])):
            raise Unrenderable(f"{name}: {each!r} is not like 443, 192.0.2.1:443 or [::]:443")
    return value.split(" ")


def _path(name: str, value: str) -> list[str]:
    if _PLAIN_PATH.fullmatch(value) is None:
        raise Unrenderable(f"{name}: {value!r} is no absolute path of letters, digits and . _ / + = , : -")
    return [value]


def _paths(name: str, value: str) -> list[str]:
    return [path for each in _words(name, value) for path in _path(name, each)]


def _count(name: str, value: str) -> list[str]:
    if re.fullmatch(r"[1-9][0-9]{0,11}", value, re.ASCII) is None:
        raise Unrenderable(f"{name}: {value!r} is no number from 1 to 999999999999")
    return [value]


def _words(name: str, value: str) -> list[str]:
    words = value.split(" ")
    if not all(words):
        raise Unrenderable(f"{name}: {value!r} is not one or more words with one blank between them")
    return words


def _is_port(text: str) -> bool:
    return 1 <= int(text) <= 65535  # noqa: PLR2004 - what two bytes hold


def _is_bracketed_address(text: str) -> bool:
    return text.startswith("[") and text.endswith("]") and _is_address(text)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


_KINDS: Mapping[str, Callable[[str, str], list[str]]] = {
    "SERVER_NAMES": _server_names,
    "PUBLIC_URL": _public_url,
    "LISTEN": _addresses,
    "LISTEN_PLAIN": _addresses,
    "CERTIFICATE": _path,
    "CERTIFICATE_KEY": _path,
    "SOCKET": _paths,
    "SNIPPETS": _path,
    "ACME_WEBROOT": _path,
    "ACCESS_LOG": _path,
    "ERROR_LOG": _path,
    "REQUESTS_PER_SECOND": _count,
    "REQUESTS_BURST": _count,
    "MAX_REQUEST_SIZE": _count,
    "NGINX_CONNECTIONS": _count,
    "SERVICE_CONNECTIONS": _count,
}
_DEFAULTS = {
    "ACME_WEBROOT": "/var/lib/letsencrypt/webroot",
    "REQUESTS_PER_SECOND": "100",
    "REQUESTS_BURST": "1000",
    # The product's: MAX_REQUEST_SIZE, and WORKERS x WORKER_CONNECTIONS of the fewest workers.
    "MAX_REQUEST_SIZE": "8388608",
    "SERVICE_CONNECTIONS": "2000",
    # What nginx has when it is told nothing.
    "NGINX_CONNECTIONS": "512",
}


def _set(words: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Unrenderable(f"--set {word!r} is not like NAME=VALUE")
        if name in values:
            raise Unrenderable(f"{name} is given twice")
        values[name] = value
    return values


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Print a file of deploy/nginx with its @NAMES@ filled in.",
        epilog=f"Names: {', '.join(sorted(_KINDS))}. "
        f"By themselves: {', '.join(f'{name}={value}' for name, value in _DEFAULTS.items())}.",
    )
    parser.add_argument("--version", required=True, help="of the nginx that will read it, or what `nginx -v` prints")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument("template", type=Path, metavar="TEMPLATE")
    given = parser.parse_args()
    try:
        text = render(given.template, _set(given.set), version=parse_version(given.version))
    except (Unrenderable, OSError, UnicodeDecodeError) as error:
        _fail(str(error))
    sys.stdout.write(text)


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"render_nginx: {sentence}\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
