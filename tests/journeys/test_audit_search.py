"""What a request left in the log is found from the shell, by what is readable in it and by what is sealed."""

from __future__ import annotations

import json

from tests.support.clients import ask
from tests.support.running_proxy import RunningProxy


def test_a_request_is_found_by_who_asked_for_whom_and_from_where(embedded_proxy: RunningProxy) -> None:
    key = embedded_proxy.shared_api_key
    headers = {"X-User-ID": "patient-81", "User-Agent": "clinic/1 (search)"}
    told = ask(embedded_proxy, "POST", "/chat", key=key, body={"prompt": "hello"}, headers=headers)
    request = told.headers["x-request-id"]

    def found(*question: str) -> list[dict[str, object]]:
        rows = json.loads(embedded_proxy.command("audit", "search", *question, "--json").stdout)
        assert isinstance(rows, list)
        return rows

    start, end = found("--request", request)
    assert (start["ty"], end["ty"], end["st"]) == ("llm.start", "llm.end", "complete")
    assert str(start["prj"]).startswith("prj_")
    assert [row["rid"] for row in found("--person", "patient-81")] == [request, request]
    assert start in found("--agent", "clinic/1 (search)", "--type", "llm.start")
    assert start in found("--address", "127.0.0.1", "--key", str(start["ak"]), "--since", "1h")
    assert b"patient-81" not in json.dumps(found("--request", request)).encode()
