"""A person is forgotten while asking on: through the whole product, with the operator's commands."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from secure_llm_proxy.audit import BodyOpener, erased_keys_in, open_records, segments_of
from secure_llm_proxy.settings import load_audit_writer_settings
from tests.support.clients import ask
from tests.support.running_proxy import RunningProxy

PERSON = "customer-4711"


def test_a_person_who_goes_on_asking_is_forgotten_and_the_log_is_whole(
    embedded_proxy: RunningProxy, tmp_path: Path
) -> None:
    """Every request is answered; what was asked before is gone, what is asked afterwards is not; nobody else is touched."""
    proxy = embedded_proxy
    api_key = proxy.shared_api_key
    enough = threading.Event()
    statuses: list[int] = []

    def ask_as(person: str, words: str) -> str:
        answer = ask(proxy, "POST", "/chat", key=api_key, body={"prompt": words}, headers={"X-User-ID": person})
        statuses.append(answer.status)
        return answer.headers["x-slp-audit-id"]

    def ask_on() -> None:
        while not enough.is_set():
            ask_as(PERSON, "and again")
            # The commands want some of the machine, too.
            time.sleep(0.02)

    before, others = ask_as(PERSON, "the word before"), ask_as("somebody-else", "the other's word")
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(2)]
        erasing = [
            pool.submit(
                proxy.command, "audit", "erase", "--person", PERSON, "--yes", "--certificate", str(tmp_path / str(n))
            )
            for n in range(2)
        ]
        try:
            for each in erasing:
                each.result(120)
        finally:
            enough.set()
        for one in asking:
            one.result(120)
    after = ask_as(PERSON, "the word after")

    assert set(statuses) == {200}
    shown = proxy.command("audit", "show", before).stdout
    assert "the word before" not in shown
    assert "its key was destroyed" in shown
    content = proxy.command("audit", "verify", "--content")
    assert content.stdout.startswith("OK: ")
    audit = load_audit_writer_settings(proxy.environment)
    bodies = [
        opened.body for each in (after, others) for opened in open_records(audit.directory, each, BodyOpener.of(audit))
    ]
    assert b"the word after" in (bodies[0] or b"")
    assert any(b"the other's word" in (body or b"") for body in bodies)
    told = set(erased_keys_in(segments_of(audit)))
    certificates = [json.loads((tmp_path / str(n)).read_text()) for n in range(2)]
    kids = {key["kid"] for each in certificates for person in each["erased"] for key in person["keys"]}
    assert kids
    assert kids <= told
