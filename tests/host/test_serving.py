"""What an installed machine does for its clients, and what it does when a part of it dies."""

from __future__ import annotations

import http.client
import ssl

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.clients import sdk
from tests.support.host_world import PROVIDER_NAME
from tests.support.installed_host import AUDIT, DOMAIN, WEB, InstalledHost
from tests.support.programs import wait_until
from tests.support.provider import Mode

_MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Is all well?"}]


def _speak(host: InstalledHost) -> tuple[str, str]:
    """A plain answer and a streamed one, by the official SDK through nginx TLS."""
    with sdk(host, host.key) as client:
        plain = client.chat.completions.create(model="test-model", messages=_MESSAGES)
        with client.chat.completions.create(model="test-model", messages=_MESSAGES, stream=True) as stream:
            streamed = "".join(event.choices[0].delta.content or "" for event in stream if event.choices)
    return str(plain.choices[0].message.content), streamed


def test_a_chat_plain_and_streamed_by_the_official_sdk(host: InstalledHost) -> None:
    assert _speak(host) == (host.world.provider.reply_text, host.world.provider.reply_text)

    received = host.world.provider.chats[-1]
    assert received.headers["host"].startswith(PROVIDER_NAME)
    assert received.headers["authorization"] == "Bearer sk-test-provider"


def test_an_answer_that_is_cut_on_the_line_is_none(host: InstalledHost) -> None:
    # Whole as HTTP has it, but without TLS's goodbye: anybody on the way could have ended it there.
    host.world.provider.script(Mode.UNTIL_CLOSE)
    try:
        cut = host.chat()
    finally:
        host.world.provider.clear()

    assert (cut.status, cut.error_code) == (502, "upstream_error")
    assert host.chat().status == 200


def test_a_client_that_does_not_know_the_certificates_authority_is_not_answered(host: InstalledHost) -> None:
    stranger = http.client.HTTPSConnection(DOMAIN, timeout=30, context=ssl.create_default_context())

    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.request("GET", "/health")


def test_a_key_that_was_never_made_is_refused(host: InstalledHost) -> None:
    with sdk(host, "slp_live_never-made") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="test-model", messages=_MESSAGES)


@pytest.mark.parametrize("unit", [WEB, AUDIT, "nginx.service", "redis-server.service", "postgresql@"])
def test_a_service_that_is_killed_is_back_by_itself(host: InstalledHost, unit: str) -> None:
    if unit == "postgresql@":
        unit = host.machine.told("sh", "-c", "systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1")
    before = host.machine.main_pid(unit)
    assert before > 0

    host.machine.run("kill", "-KILL", str(before))
    wait_until(lambda: host.machine.main_pid(unit) not in {0, before}, what=f"{unit} is back", seconds=120)
    host.wait_until_ready()

    assert _speak(host)[0] == host.world.provider.reply_text


def test_after_a_reboot_everything_is_there_again(host: InstalledHost) -> None:
    key = host.key

    host.machine.reboot()
    host.wait_until_ready()

    assert host.key == key
    assert _speak(host) == (host.world.provider.reply_text, host.world.provider.reply_text)
    # The first minute's check may have come while the workers were on their way.
    host.machine.wait_for("systemctl", "start", "secure-llm-health.service", what="the health check is well")
    failed = host.machine.told("systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines()
    # A container has no kernel modules to load.
    assert [line for line in failed if not line.startswith("systemd-modules-load")] == []
    host.manage("audit", "verify")


def test_pulling_the_plug_loses_no_record(host: InstalledHost) -> None:
    answered = host.chat()
    assert answered.status == 200
    exchange = answered.headers["x-request-id"]

    host.machine.pull_the_plug()
    host.wait_until_ready()

    assert exchange in host.manage("audit", "cat").stdout
    # 3: the newest lines are not under a checkpoint that left the host.
    assert host.manage("audit", "verify", check=False).returncode in {0, 3}
