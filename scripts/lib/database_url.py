"""What scripts/install asks of a database's URL, which stands on standard input: never on a command line, it holds a password.

usage: database_url.py password | psql-password | addresses
  password       as it is, not as it is written in a URL
  psql-password  a line for psql that sets its variable `password`
  addresses      where it is, when not on this host, with the resolvers that tell it; one line, empty for a database here
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit


def _password(url: SplitResult) -> str:
    return unquote(url.password or "")


def _psql_password(url: SplitResult) -> str:
    password = _password(url).replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"\\set password '{password}'"


def _hosts(url: SplitResult) -> list[str]:
    """Also of libpq's forms: several hosts, and those named behind the question mark."""
    parts = url.netloc.rpartition("@")[2].split(",")
    listed = [part[1:].partition("]")[0] if part.startswith("[") else part.partition(":")[0] for part in parts]
    query = parse_qs(url.query)
    for name in ("host", "hostaddr"):
        for value in query.get(name, []):
            listed.extend(value.split(","))
    # A path is a socket of this host.
    return [unquote(host) for host in listed if host and not unquote(host).startswith(("/", "@"))]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolvers(file: Path) -> list[str]:
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    words = [line.split() for line in lines]
    return [word[1].partition("%")[0] for word in words if len(word) > 1 and word[0] == "nameserver"]


def _addresses(url: SplitResult) -> str:
    hosts = _hosts(url)
    found = {str(info[4][0]).partition("%")[0] for host in hosts for info in socket.getaddrinfo(host, None)}
    distant = {address for address in found if not ipaddress.ip_address(address).is_loopback}
    if distant and not all(map(_is_address, hosts)):
        distant.update(
            address
            for address in _resolvers(Path("/etc/resolv.conf"))
            if _is_address(address) and not ipaddress.ip_address(address).is_loopback
        )
    return " ".join(sorted(distant))


def main() -> int:
    answers = {"password": _password, "psql-password": _psql_password, "addresses": _addresses}
    try:
        print(answers[sys.argv[1]](urlsplit(sys.stdin.read().strip())))
    except OSError as error:
        print(f"the host of the database's URL cannot be looked up: {error}", file=sys.stderr)
        return 1
    except ValueError:
        print("the database's URL is no URL", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
