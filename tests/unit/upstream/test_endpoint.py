from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.upstream.endpoint import Endpoint, parse_endpoint, tls_context

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "endpoint", "authority", "target"),
    [
        (
            "https://api.openai.com/v1",
            Endpoint("api.openai.com", 443, secure=True, base_path="/v1", query=""),
            "api.openai.com",
            "/v1/models",
        ),
        (
            " https://API.example.com:8443/v1/chat/completions/ ",
            Endpoint("api.example.com", 8443, secure=True, base_path="/v1", query=""),
            "api.example.com:8443",
            "/v1/models",
        ),
        (
            "http://127.0.0.1:8080",
            Endpoint("127.0.0.1", 8080, secure=False, base_path="", query=""),
            "127.0.0.1:8080",
            "/models",
        ),
        (
            "http://[::1]:80/v1/",
            Endpoint("::1", 80, secure=False, base_path="/v1", query=""),
            "[::1]",
            "/v1/models",
        ),
        (
            "https://x.example/openai/deployments/d/chat/completions?api-version=2026-01-01",
            Endpoint("x.example", 443, secure=True, base_path="/openai/deployments/d", query="api-version=2026-01-01"),
            "x.example",
            "/openai/deployments/d/models?api-version=2026-01-01",
        ),
        (
            "https://bücher.example/v1",
            Endpoint("xn--bcher-kva.example", 443, secure=True, base_path="/v1", query=""),
            "xn--bcher-kva.example",
            "/v1/models",
        ),
    ],
)
def test_an_endpoint_is_read_from_its_url(url: str, endpoint: Endpoint, authority: str, target: str) -> None:
    parsed = parse_endpoint(url)

    assert parsed == endpoint
    assert parsed.authority == authority
    assert parsed.target("/models") == target


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "api.openai.com/v1",
        "ftp://x.example/v1",
        "file:///etc/passwd",
        "https://",
        "https:///v1",
        "https://user:secret@x.example/v1",
        "https://x.example:99999/v1",
        "https://x.example:port/v1",
        "https://[::1/v1",
        "https://x.example/v 1",
        "https://x.example/\u00fc",
        "https://x y.example/v1",
    ],
)
def test_an_unusable_url_is_refused_in_a_sentence_that_names_the_setting(url: str | None) -> None:
    with pytest.raises(OperatorError, match="LLM_API_URL") as caught:
        parse_endpoint(url)

    assert "secret" not in str(caught.value)


def test_certificates_are_verified_with_tls_1_2_or_newer_unless_the_setting_says_otherwise() -> None:
    strict, lax = tls_context(verify=True, ca_file=None), tls_context(verify=False, ca_file=None)

    assert (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (lax.verify_mode, lax.check_hostname) == (ssl.CERT_NONE, False)
    assert strict.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert lax.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_session_secrets_are_not_written_to_the_file_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "secrets"))

    assert tls_context(verify=True, ca_file=None).keylog_filename is None


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_unreadable_certificate_authorities_are_refused_by_name(tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "authorities.pem"
    if content is not None:
        ca_file.write_text(content, "utf-8")

    with pytest.raises(OperatorError, match=r"LLM_CA_FILE.*authorities\.pem"):
        tls_context(verify=True, ca_file=ca_file)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433", "0x7f000001", "0X7F000001", "017700000001", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1", "127.0.0.0x1",
        "127.0.0.1.", "1.2.3.4.5", "256.0.0.1", "010.0.0.1", "0x", "gpu.0x", "gpu.7", "\uff11\uff12\uff17.1", "127\u30021", "a_b.\uff10x7f",
        "[fe80::1%eth0]", "[fe80::1%25eth0]", "[fe80::1%1]", "[::1%lo]", "[v1.fe80]", "[127.0.0.1]", "[::1.2.3]", "::1",
        "exa%6dple.com", "a\\b.example", "a\tb.example", "a\nb.example", "a\x00b.example", "a..b", ".a", "a" * 64 + ".example",
        "a.example\u200b:1\u2028", "-a.example", "a-.example", "*.example.com", "a,b.example", "[::1]x",
        "x[::1]", "[::1][::2]", "a.example;b", "x" * 300,
    ],
    ids=ascii,
)  # fmt: skip
def test_a_host_that_two_readers_could_take_for_different_ones_is_refused(host: str) -> None:
    with pytest.raises(OperatorError, match="LLM_API_URL"):
        parse_endpoint(f"https://{host}/v1")


@pytest.mark.parametrize(
    ("host", "read", "is_literal"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127.0.0.1", True),
        ("[0:0:0:0:0:0:0:1]", "::1", True),
        ("[FD00::0:7]", "fd00::7", True),
        ("[::ffff:10.0.0.7]", "::ffff:a00:7", True),
        ("169.254.169.254", "169.254.169.254", True),
        ("API.Example.COM.", "api.example.com.", False),
        ("my_gpu", "my_gpu", False),
        ("1.2.3.4a", "1.2.3.4a", False),
        ("7up.example", "7up.example", False),
    ],
)
def test_a_host_has_one_spelling(host: str, read: str, *, is_literal: bool) -> None:
    endpoint = parse_endpoint(f"https://{host}:8443/v1")

    assert (endpoint.host, endpoint.is_literal) == (read, is_literal)
