"""Write what the container `nginx` reads: its main file, the site rendered from deploy/nginx, and what they include.

One step before nginx starts, in a container of the product's image; the two share the folder. Each file is replaced whole,
so a reload at any moment reads either the old site or the new one. Nothing is written unless everything could be rendered.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from scripts.lib.render_nginx import Unrenderable, parse_version, render

_PROJECT = Path(__file__).resolve().parents[2]
_TEMPLATES = _PROJECT / "deploy" / "nginx"
_SECRETS = Path("/run/secrets")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="nginx-site", description="Write the configuration of an nginx in front of web."
    )
    parser.add_argument("--nginx-version", required=True, help="of the nginx that will read it, for example 1.30.0")
    parser.add_argument(
        "--domain", required=True, help="host names to serve, comma separated; the first is the public one"
    )
    parser.add_argument("--socket", action="append", required=True, help="of a web service; several take turns")
    parser.add_argument("--max-request-size", default="8388608", help="MAX_REQUEST_SIZE of the web service, bytes")
    parser.add_argument("--workers", type=int, default=4, help="WORKERS of each web service")
    parser.add_argument("--listen", default="8443", help="where nginx listens for TLS")
    parser.add_argument("--listen-plain", default="8080", help="where it listens for plain HTTP, which it sends to TLS")
    parser.add_argument(
        "--directory", type=Path, default=Path("/etc/nginx/secure_llm_proxy"), help="where the files go"
    )
    given = parser.parse_args()
    folder: Path = given.directory
    domains = given.domain.split(",")
    main_file = Path(__file__).with_name("nginx.conf").read_text("utf-8")
    connections = re.search(r"^\s*worker_connections ([0-9]+);", main_file, re.MULTILINE)
    assert connections is not None
    values = {
        "NGINX_CONNECTIONS": connections[1],
        # Each worker holds WORKER_CONNECTIONS, which compose files leave as they are.
        "SERVICE_CONNECTIONS": str(given.workers * 1000),
        "MAX_REQUEST_SIZE": given.max_request_size,
        "SERVER_NAMES": " ".join(domains),
        "PUBLIC_URL": f"https://{domains[0]}",
        "LISTEN": given.listen,
        "LISTEN_PLAIN": given.listen_plain,
        "CERTIFICATE": str(_SECRETS / "tls.pem"),
        "CERTIFICATE_KEY": str(_SECRETS / "tls.key"),
        "SOCKET": " ".join(given.socket),
        "SNIPPETS": str(folder),
        # What nginx says is the container's to keep.
        "ACCESS_LOG": "/dev/stdout",
        "ERROR_LOG": "/dev/stderr",
    }
    try:
        version = parse_version(given.nginx_version)
        files = {
            "http.conf": render(_TEMPLATES / "http.conf", values, version=version),
            "site.conf": render(_TEMPLATES / "secure_llm_proxy.conf", values, version=version),
            "refusals.conf": (_TEMPLATES / "refusals.conf").read_text("utf-8"),
            "nginx.conf": main_file,
        }
        for name, text in files.items():
            _replace(folder / name, text)
    except (Unrenderable, OSError) as error:
        print(f"nginx-site: {error}", file=sys.stderr)
        return 1
    return 0


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, "utf-8")
    # nginx is another user; nothing in here is secret.
    part.chmod(0o644)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
