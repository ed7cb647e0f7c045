from __future__ import annotations

from pathlib import Path

import pytest

from secure_llm_proxy.cli.host.site import find_site, read_site

SITE = """
# upstream slp_workers stands below, ssl_certificate /no/such/one;
upstream slp_workers {{ server unix:/run/secure_llm_proxy.sock; }}
server {{ listen {plain} default_server; server_name _; }}
server {{
    listen {tls} ssl http2;
    server_name llm.example.org *.example.org;
    ssl_certificate /etc/secure_llm_proxy/tls/certificate.pem; # the chain
    ssl_certificate_key /etc/secure_llm_proxy/tls/key.pem;
    access_log /var/log/nginx/secure_llm_proxy.access.jsonl slp_json;
}}
"""


def one_per_line(text: str) -> str:
    return text.replace("{ ", "{\n").replace("; ", ";\n")


@pytest.mark.parametrize(
    ("tls", "plain", "asked"),
    [
        ("443", "80", (("127.0.0.1", 443), ("127.0.0.1", 80))),
        ("[::]:443", "*:80", (("::1", 443), ("127.0.0.1", 80))),
        ("192.0.2.7:8443", "0.0.0.0:8080", (("192.0.2.7", 8443), ("127.0.0.1", 8080))),
        ("[2001:db8::7]:443", "localhost:80", (("2001:db8::7", 443), ("localhost", 80))),
    ],
)
def test_the_site_tells_where_it_is_asked_by_which_name_and_where_it_logs(
    tls: str, plain: str, asked: tuple[tuple[str, int], tuple[str, int]]
) -> None:
    site = read_site(Path("site"), one_per_line(SITE.format(tls=tls, plain=plain)))

    assert (site.tls, site.plain) == asked
    assert (site.names, site.name) == (("llm.example.org", "*.example.org"), "llm.example.org")
    assert site.certificate == Path("/etc/secure_llm_proxy/tls/certificate.pem")
    assert site.access_log == Path("/var/log/nginx/secure_llm_proxy.access.jsonl")


def test_among_other_sites_ours_is_found_by_its_workers(tmp_path: Path) -> None:
    folder = tmp_path / "etc/nginx/sites-enabled"
    folder.mkdir(parents=True)
    (folder / "another").write_text("# not slp_workers\nserver {\n    listen 443 ssl;\n}\n")
    none = find_site(tmp_path)
    (folder / "ours.conf").write_text(one_per_line(SITE.format(tls="443", plain="80")))

    found = find_site(tmp_path)

    assert none is None
    assert found is not None
    assert found.path.name == "ours.conf"
