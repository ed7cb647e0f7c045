"""What the corridor sees is what the provider gets: text for text, channel for channel, on record to the byte (A10).

100,000 requests and more: `python -m tests.faults requests`.
"""

from __future__ import annotations

import pytest

from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.chat import Target, UpstreamRequest
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.generated_requests import RequestGenerator
from tests.support.seen_and_sent import KINDS, READERS, Differential, wrong_with
from tests.support.wire_samples import Json

# Anthropic makes no embeddings.
_PAIRS = [(known, kind) for known in READERS for kind in KINDS if (known, kind) != ("openai_embeddings", "anthropic")]


def test_ten_thousand_requests_reach_providers_of_every_kind_as_they_were_seen() -> None:
    differential = Differential(seed=20261121)

    differential.run(10_000)

    assert not differential.wrong, "\n".join(differential.wrong[:10])
    sent = {
        f"{wire_format} → {kind}": differential.counts[f"{wire_format} → {kind}: sent"] for wire_format, kind in _PAIRS
    }
    assert {pair: number for pair, number in sent.items() if number < 5_000 / len(READERS) / len(KINDS)} == {}
    assert differential.counts["spoiled, refused"] > 1_000


def test_the_same_seed_makes_the_same_requests() -> None:
    first, second = RequestGenerator(7), RequestGenerator(7)

    assert [first.request("openai_chat") for _ in range(50)] == [second.request("openai_chat") for _ in range(50)]


_PAYLOAD: dict[str, Json] = {"model": "m", "messages": [{"role": "user", "content": "mk1-hello"}], "user": "mk2-ann"}


def _recorded(sent: UpstreamRequest) -> AuditEvent:
    return AuditEvent("rec_1", AuditType.LLM_START, "exc_1", body=b'{"request":%b,"from":{}}' % sent.body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model":"the-model","messages":[{"role":"user","content":"mk1-hello"}],"user":"mk2-ann"}', None),
        (
            b'{"model":"the-model","messages":[{"role":"user","content":"mk1-Hello"}],"user":"mk2-ann"}',
            "another request",
        ),
        (b'{"model":"m","messages":[{"role":"user","content":"mk1-hello"}],"user":"mk2-ann"}', "asked for 'm'"),
    ],
)
def test_the_comparison_finds_what_is_changed_in_the_same_format(body: bytes, found: str | None) -> None:
    sent = UpstreamRequest(Target("p", "the-model"), WireFormat.OPENAI_CHAT, body, False)

    wrong = wrong_with("openai_chat", _PAYLOAD, sent, _recorded(sent))

    assert (found is None and not wrong) or any(found in sentence for sentence in wrong if found)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"messages":[{"role":"user","content":"mk1-hello"}],"metadata":{"user_id":"mk2-ann"}}', None),
        (b'{"messages":[{"role":"user","content":"mk1-hello"}]}', "lost without a word"),
        (b'{"messages":[{"role":"user","content":"mk1-hello mk9-"}],"metadata":{"user_id":"mk2-ann"}}', "not seen"),
        (b'{"system":"mk1-hello","messages":[],"metadata":{"user_id":"mk2-ann"}}', "is user at"),
    ],
)
def test_the_comparison_finds_what_a_translation_changes(body: bytes, found: str | None) -> None:
    sent = UpstreamRequest(Target("p", "the-model"), WireFormat.ANTHROPIC_MESSAGES, body, False, translated=True)

    wrong = wrong_with("openai_chat", _PAYLOAD, sent, _recorded(sent))

    assert (found is None and not wrong) or any(found in sentence for sentence in wrong if found)


def test_the_comparison_finds_a_record_of_other_bytes() -> None:
    sent = UpstreamRequest(Target("p", "the-model"), WireFormat.ANTHROPIC_MESSAGES, b"{}", False, translated=True)
    start = _recorded(sent)._replace(body=b'{"request":{"other":1},"from":{}}')

    assert any("other bytes" in sentence for sentence in wrong_with("openai_chat", {}, sent, start))
