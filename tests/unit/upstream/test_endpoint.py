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
