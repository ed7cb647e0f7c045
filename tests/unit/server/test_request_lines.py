"""Request lines that are remembered: what comes again is read alike, what is secret is not kept, nobody fills the memory."""

from __future__ import annotations

import pytest

from secure_llm_proxy.server.request_reader import _LINE_BYTES_MAX, _LINES, _LINES_MAX, PlainRequest, RequestReader


def read(target: str, method: str = "GET") -> dict[str, object]:
    reader = RequestReader({}, head_bytes_max=8190, fields_max=100, scheme_headers={}, host_names_server=False)
    request = reader.read(f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert isinstance(request, PlainRequest)
    return request.environ


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_line_that_came_before_means_the_same(method: str) -> None:
    _LINES.clear()
    first = read("/chat", method)
    assert len(_LINES) == 1

    again = read("/chat", method)

    assert again == first
    assert (again["REQUEST_METHOD"], again["PATH_INFO"], again["QUERY_STRING"]) == (method, "/chat", "")


def test_a_query_is_read_and_not_kept() -> None:
    _LINES.clear()

    environ = read("/chat?key=secret")

    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/chat", "key=secret")
    assert not _LINES


def test_lines_are_kept_within_bounds() -> None:
    _LINES.clear()
    read("/" + "a" * _LINE_BYTES_MAX)
    assert not _LINES

    for number in range(2 * _LINES_MAX + 5):
        read(f"/{number}")

    assert 0 < len(_LINES) <= _LINES_MAX
