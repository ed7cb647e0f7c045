"""Error reports tell the class of an error and where it was raised, and nothing that anybody said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, cast

from secure_llm_proxy.settings import TelemetrySettings
from secure_llm_proxy.telemetry import start_error_reports
from secure_llm_proxy.telemetry.error_reports import strip_event

if TYPE_CHECKING:
    from sentry_sdk.types import Event

CANARY = "canary-5c1e"

# Takes what Sentry would send before it is sent: a transport of our own, no network.
PROGRAM = """
import json, logging, sys
from pydantic import SecretStr
from secure_llm_proxy.settings import TelemetrySettings
from secure_llm_proxy.telemetry import start_error_reports
assert start_error_reports(TelemetrySettings(sentry_dsn=SecretStr("https://k@127.0.0.1:9/1")), environment="embedded")
import sentry_sdk
from sentry_sdk.transport import Transport
sent = []
class Kept(Transport):
    def capture_envelope(self, envelope):
        sent.append(envelope.serialize().decode())
client = sentry_sdk.get_client()
client.transport.kill()
client.transport = Kept(client.options)
def fail(prompt):
    secret = "canary-5c1e in a local variable " + prompt
    sentry_sdk.add_breadcrumb(message="canary-5c1e in a breadcrumb")
    sentry_sdk.set_tag("canary-5c1e", "canary-5c1e")
    sentry_sdk.set_user({"id": "canary-5c1e"})
    logging.getLogger("x").error("canary-5c1e in a log line")
    try:
        raise ValueError("canary-5c1e in a cause")
    except ValueError as cause:
        raise KeyError("canary-5c1e in a message " + secret) from cause
try:
    fail("canary-5c1e")
except KeyError as error:
    sentry_sdk.capture_exception(error)
sentry_sdk.capture_message("canary-5c1e as a message")
print(json.dumps(sent))
"""


def test_without_a_dsn_the_library_is_not_even_imported() -> None:
    program = (
        "import sys\n"
        "from secure_llm_proxy.settings import TelemetrySettings\n"
        "from secure_llm_proxy.telemetry import start_error_reports\n"
        "print(start_error_reports(TelemetrySettings(), environment='production'),"
        " any(name.partition('.')[0] == 'sentry_sdk' for name in sys.modules))"
    )

    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SENTRY_DSN": "https://k@127.0.0.1:9/1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip

    assert told.stdout.split() == ["False", "False"]


def test_without_a_dsn_nothing_is_started() -> None:
    assert start_error_reports(TelemetrySettings(), environment="embedded") is False


def test_what_is_really_sent_holds_the_class_and_the_place_and_no_word_of_ours() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)

    sent = json.loads(told.stdout.splitlines()[-1])
    assert len(sent) >= 1
    assert not any(CANARY in envelope for envelope in sent)
    event = json.loads(sent[0].splitlines()[-1])
    kinds = [value["type"] for value in event["exception"]["values"]]
    assert "KeyError" in kinds
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert frames[-1]["function"] == "fail"
    assert frames[-1]["lineno"] > 0


def test_an_event_is_cut_down_to_an_allow_list() -> None:
    event = {
        "event_id": "1",
        "level": "error",
        "platform": "python",
        "message": CANARY,
        "logentry": {"message": CANARY, "params": [CANARY]},
        "request": {"url": CANARY, "data": CANARY, "headers": {"Authorization": CANARY}},
        "breadcrumbs": {"values": [{"message": CANARY}]},
        "user": {"id": CANARY},
        "extra": {"sys.argv": [CANARY], "prompt": CANARY},
        "contexts": {"trace": {"data": CANARY}},
        "tags": {"prompt": CANARY},
        "server_name": CANARY,
        "modules": {CANARY: "1"},
        "threads": {"values": [{"stacktrace": {"frames": [{"vars": {"p": CANARY}}]}}]},
        "transaction": CANARY,
        "spans": [CANARY],
        "fingerprint": [CANARY],
        "something_new": CANARY,
        "exception": {
            "values": [
                {
                    "type": "KeyError",
                    "module": "builtins",
                    "value": CANARY,
                    "mechanism": {"type": "generic", "data": {"x": CANARY}},
                    "stacktrace": {
                        "frames": [
                            {
                                "filename": "a.py", "function": "f", "lineno": 3, "vars": {"prompt": CANARY},
                                "pre_context": [CANARY], "context_line": CANARY, "post_context": [CANARY],
                            }
                        ],
                        "registers": {"x": CANARY},
                    },
                },
                {"type": "ValueError", "value": CANARY, "stacktrace": None},
                {"type": "ValueError", "value": CANARY, "raw_stacktrace": {"frames": [{"vars": {"p": CANARY}}]}},
            ]
        },
    }  # fmt: skip

    kept = strip_event(cast("Event", event), {})

    assert kept is not None
    assert CANARY not in json.dumps(kept)
    first = kept["exception"]["values"][0]
    assert first["type"] == "KeyError"
    assert first["stacktrace"]["frames"][0] == {"filename": "a.py", "function": "f", "lineno": 3}


def test_an_event_that_says_nothing_after_the_cut_is_dropped() -> None:
    assert strip_event(cast("Event", {"level": "info", "message": CANARY}), {}) is None
    assert strip_event(cast("Event", {"logger": "urllib3", "logentry": {"message": CANARY}}), {}) is None
