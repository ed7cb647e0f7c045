"""scripts/lib/render_nginx.py: what it fills in, what it refuses, and that it runs on a bare host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.render_nginx import Unrenderable, parse_version, render

ROOT = Path(__file__).resolve().parents[2]
RENDERER = ROOT / "scripts" / "lib" / "render_nginx.py"
TEMPLATES = ROOT / "deploy" / "nginx"
SITE = TEMPLATES / "secure_llm_proxy.conf"
VALUES = {
    "SERVER_NAMES": "llm.example.org *.llm.example.org 192.0.2.1 [2001:db8::1]",
    "PUBLIC_URL": "https://llm.example.org",
    "LISTEN": "443 [::]:443",
    "LISTEN_PLAIN": "192.0.2.1:80",
    "CERTIFICATE": "/etc/secure_llm_proxy/tls/certificate.pem",
    "CERTIFICATE_KEY": "/etc/secure_llm_proxy/tls/key.pem",
    "SOCKET": "/run/secure_llm_proxy.sock",
    "SNIPPETS": "/etc/nginx/snippets",
    "ACCESS_LOG": "/var/log/nginx/secure_llm_proxy.access.json",
    "ERROR_LOG": "/var/log/nginx/secure_llm_proxy.error.log",
}
OLD, NEW = (1, 22, 1), (1, 26, 3)


def directives(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def test_the_site_is_rendered_for_the_nginx_that_will_read_it() -> None:
    old, new = directives(render(SITE, VALUES, version=OLD)), directives(render(SITE, VALUES, version=NEW))

    assert "listen 443 ssl http2 default_server;" in old
    assert "http2 on;" not in old
    assert "listen 443 ssl default_server;" in new
    assert new.count("http2 on;") == 2


def test_nginx_takes_a_body_that_is_a_mebibyte_larger_than_the_products_own_limit() -> None:
    usual, raised = (
        directives(render(SITE, {**VALUES, **more}, version=NEW)) for more in ({}, {"MAX_REQUEST_SIZE": "50000000"})
    )

    assert [line for line in usual if "body" in line and "size" in line] == [
        "client_max_body_size 9437184;",
        "client_body_buffer_size 9437184;",
    ]
    assert {"client_max_body_size 51048576;", "client_body_buffer_size 51048576;"} <= set(raised)


@pytest.mark.parametrize(
    ("connections", "service", "room"),
    [
        ("768", "2000", 256),
        ("16384", "2000", 2000),
        ("16384", "8000", 5461),
        ("512", "2000", 170),
        ("1", "1", 1),
    ],
)
def test_nginx_brings_no_more_requests_than_it_and_the_workers_have_connections_for(
    connections: str, service: str, room: int
) -> None:
    values = {**VALUES, "NGINX_CONNECTIONS": connections, "SERVICE_CONNECTIONS": service}

    rendered = directives(render(SITE, {**values, "SOCKET": "/run/a"}, version=NEW))

    assert [line for line in rendered if line.startswith("server unix:")] == [
        f"server unix:/run/a max_fails=0 max_conns={room};"
    ]


def test_two_services_share_what_nginx_has_connections_for() -> None:
    values = {**VALUES, "NGINX_CONNECTIONS": "4096", "SERVICE_CONNECTIONS": "4000", "SOCKET": "/run/a /run/b"}

    rendered = directives(render(SITE, values, version=NEW))

    assert [line for line in rendered if line.startswith("server unix:")] == [
        f"server unix:/run/{name} max_fails=0 max_conns=682;" for name in "ab"
    ]


@pytest.mark.parametrize("name", ["http.conf", "refusals.conf", "secure_llm_proxy.conf"])
def test_no_name_is_left_in_what_nginx_reads(name: str) -> None:
    rendered = render(TEMPLATES / name, VALUES, version=NEW)

    assert not [line for line in directives(rendered) if re.search("@[A-Z0-9_]+@", line)]


def test_a_listen_line_stands_once_for_each_address() -> None:
    rendered = directives(render(SITE, VALUES, version=OLD))

    assert [line for line in rendered if line.startswith("listen ")] == [
        "listen 192.0.2.1:80 default_server;",
        "listen 443 ssl http2 default_server;",
        "listen [::]:443 ssl http2 default_server;",
        "listen 443 ssl http2;",
        "listen [::]:443 ssl http2;",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER_NAMES", ""),
        ("SERVER_NAMES", "a.example; return 200"),
        ("SERVER_NAMES", "~^.*$"),
        ("SERVER_NAMES", "$host"),
        ("SERVER_NAMES", "a.example  b.example"),
        ("SERVER_NAMES", "a.example\nb.example"),
        ("SERVER_NAMES", "a.example\n"),
        ("SERVER_NAMES", "https://a.example"),
        ("SERVER_NAMES", "a.example:443"),
        ("SERVER_NAMES", "_ *"),
        ("SERVER_NAMES", "[2001:db8::1"),
        ("PUBLIC_URL", "http://a.example"),
        ("PUBLIC_URL", "https://a.example/"),
        ("PUBLIC_URL", "https://$host"),
        ("PUBLIC_URL", "https://a.example:99999"),
        ("PUBLIC_URL", "https://a.example\n"),
        ("LISTEN", "0"),
        ("LISTEN", "65536"),
        ("LISTEN", "443 ssl"),
        ("LISTEN", "443;"),
        ("LISTEN", "[::1:443"),
        ("LISTEN", "300.1.1.1:443"),
        ("LISTEN", "unix:/run/x.sock"),
        ("CERTIFICATE", "relative.pem"),
        ("CERTIFICATE", "/etc/a b.pem"),
        ("CERTIFICATE", "/etc/$ssl_server_name.pem"),
        ("CERTIFICATE_KEY", '/etc/a".pem'),
        ("SOCKET", "/run/a.sock; }"),
        ("SNIPPETS", "/etc/nginx/{a}"),
        ("ACME_WEBROOT", "/srv/#"),
        ("ACCESS_LOG", "/var/log/a\\b"),
        ("ERROR_LOG", "/var/log/'a'"),
        ("ERROR_LOG", "/var/log/@SOCKET@"),
        ("REQUESTS_PER_SECOND", "0"),
        ("REQUESTS_PER_SECOND", "-1"),
        ("REQUESTS_BURST", "1e3"),
        ("MAX_REQUEST_SIZE", "8m"),
        ("MAX_REQUEST_SIZE", "0"),
        ("NGINX_CONNECTIONS", "auto"),
        ("SERVICE_CONNECTIONS", ""),
        ("REQUESTS_BURST", "٣"),
    ],
)
def test_a_value_that_could_leave_its_place_is_refused(name: str, value: str) -> None:
    with pytest.raises(Unrenderable, match=f"^{name}: "):
        render(SITE, {**VALUES, name: value}, version=OLD)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_missing_value_is_named_with_its_line(name: str) -> None:
    values = {key: value for key, value in VALUES.items() if key != name}

    with pytest.raises(Unrenderable, match=rf"secure_llm_proxy\.conf, line \d+: @{name}@ is not filled in"):
        render(SITE, values, version=OLD)


def test_a_name_that_no_template_knows_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "strange.conf"
    template.write_text("listen @PORT@;\n", "utf-8")

    with pytest.raises(Unrenderable, match="no template has a name PORT"):
        render(SITE, {**VALUES, "PORT": "443"}, version=OLD)
    with pytest.raises(Unrenderable, match="line 1: @PORT@ is a name that nobody knows"):
        render(template, VALUES, version=OLD)


@pytest.mark.parametrize("name", ["HTTP2", "HTTP2_ON_LISTEN"])
def test_what_the_version_decides_cannot_be_given(name: str) -> None:
    with pytest.raises(Unrenderable, match="no template has a name"):
        render(SITE, {**VALUES, name: "http2 on;"}, version=OLD)


@pytest.mark.parametrize(
    "told", ["1.22.1", "nginx/1.22.1", "nginx version: nginx/1.22.1\n", "nginx version: nginx/1.22.1 (Ubuntu)"]
)
def test_a_version_is_read_in_every_form_that_nginx_tells_it(told: str) -> None:
    assert parse_version(told) == (1, 22, 1)


@pytest.mark.parametrize("told", ["", "1.22", "openresty/1.22.1", "1.22.1.2", "x1.22.1"])
def test_what_is_no_version_is_refused(told: str) -> None:
    with pytest.raises(Unrenderable, match="is no version of nginx"):
        parse_version(told)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As a bare host runs it: isolated, without any package."""
    command = [sys.executable, "-I", "-S", str(RENDERER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_it_runs_on_a_bare_host_and_prints_what_the_tests_render() -> None:
    values = [part for name, value in VALUES.items() for part in ("--set", f"{name}={value}")]

    done = run("--version", "1.26.3", *values, str(SITE))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == render(SITE, VALUES, version=NEW)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--version", "1.22.1", str(SITE)), 1, "is not filled in"),
        (("--version", "new", str(SITE)), 1, "is no version of nginx"),
        (("--version", "1.22.1", "--set", "SOCKET", str(SITE)), 1, "is not like NAME=VALUE"),
        (("--version", "1.22.1", "--set", "SOCKET=/a", "--set", "SOCKET=/b", str(SITE)), 1, "SOCKET is given twice"),
        (("--version", "1.22.1", "/nowhere/site.conf"), 1, "/nowhere/site.conf"),
        ((str(SITE),), 2, "--version"),
    ],
)
def test_a_failure_prints_nothing_but_its_reason(arguments: tuple[str, ...], status: int, sentence: str) -> None:
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (status, "")
    assert sentence in done.stderr
