"""The upstream room where it really runs: many exchanges in one thread, under gevent's monkey patching."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

from tests.support.certificates import Certificate
from tests.support.provider import Mode, Provider

ROOT = Path(__file__).parents[2]

# one greenlet per command, all started at once; prints what each came to
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import json, sys
import gevent
from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.upstream import Provider as ProviderClient
from tests.support.compatible_provider import chat_request, compatible_provider

settings, commands = json.loads(sys.argv[1])
client = compatible_provider(UpstreamSettings.model_validate(settings))

def run(number, mode, streamed, leave_after_s):
    cancellation = Cancellation()
    if leave_after_s is not None:
        gevent.spawn_later(leave_after_s, cancellation.raise_, "client_gone")
    marker = f"{mode or 'model'}" if mode else f"model-{number}"
    body = {"model": marker, "messages": []}
    if streamed:
        body["stream"] = True
    payload = json.dumps(body).encode()
    try:
        if not streamed:
            completion = client.complete(chat_request(payload, model=marker), cancellation)
            return [completion.model == marker, completion.text]
        stream = client.stream(chat_request(payload, stream=True, model=marker), cancellation)
        try:
            events = list(stream)
        finally:
            stream.close()
        return [all(event.payload["model"] == marker for event in events), "".join(event.text for event in events)]
    except ProxyError as error:
        return [type(error).__name__, error.public]

greenlets = [gevent.spawn(run, number, *command) for number, command in enumerate(commands)]
gevent.joinall(greenlets, timeout=80, raise_error=True)
print(json.dumps([greenlet.value for greenlet in greenlets]))
client.close()
"""

Command = tuple[str | None, bool, float | None]


def run(settings: dict[str, object], commands: list[Command]) -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps([settings, commands])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    results: list[list[object]] = json.loads(done.stdout)
    return results


def test_exchanges_in_one_thread_run_side_by_side() -> None:
    with Provider(stream_pause_s=0.3) as far_end:
        results = run({"api_url": far_end.base_url}, [(None, number % 2 == 0, None) for number in range(40)])

        assert results == [[True, far_end.reply_text]] * 40
        # one after the other they would never be two at once
        assert far_end.active_max >= 10


def test_each_fault_ends_its_own_exchange_only() -> None:
    patience: dict[str, object] = {"first_byte_timeout_s": 5.0, "idle_timeout_s": 5.0, "total_timeout_s": 30.0}
    faults = [Mode.HANG_BEFORE_HEADERS, Mode.HANG_MID_STREAM, Mode.EARLY_CLOSE, Mode.BAD_UTF8, Mode.ERROR]
    kinds = ["UpstreamTimeout", "UpstreamTimeout", "UpstreamFailed", "UpstreamFailed", "UpstreamFailed"]
    with Provider() as far_end:
        commands: list[Command] = [(str(fault), True, None) for fault in faults]
        commands += [(None, True, None)] * 3 + [(str(Mode.HANG_MID_STREAM), True, 0.2)]

        results = run({"api_url": far_end.base_url, **patience}, commands)

        assert [result[0] for result in results] == [*kinds, True, True, True, "ClientGone"]
        assert far_end.wait_for_disconnect()


def test_tls_and_name_lookup_work_under_the_patch(certificate: Certificate) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    with Provider(tls=context, stream_pause_s=0.01) as far_end:
        settings: dict[str, object] = {"api_url": far_end.base_url, "ca_file": str(certificate.authority)}
        commands: list[Command] = [(None, number % 2 == 0, None) for number in range(10)]
        commands += [(str(Mode.HANG_BEFORE_HEADERS), False, 0.2)]

        results = run(settings, commands)

        assert results[:-1] == [[True, far_end.reply_text]] * 10
        assert results[-1][0] == "ClientGone"
