"""The real corridor and the real writing for providers, and in the provider's place somebody who keeps what would have been sent.

`Differential.compare` holds one generated request to the promise: what the corridor saw, and put on record, is what the provider
gets, text for text and channel for channel; and what is not sent was refused, or told as left out.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from secure_llm_proxy.foundation.cancellation import Cancellation
from secure_llm_proxy.foundation.errors import ProxyError
from secure_llm_proxy.foundation.strict_json import JsonObject
from secure_llm_proxy.gateway import RelayedStream, chat
from secure_llm_proxy.settings import LimitSettings, UpstreamSettings
from secure_llm_proxy.upstream import Providers
from secure_llm_proxy.vocabulary.audit import AuditEvent
from secure_llm_proxy.vocabulary.caller import RateClass
from secure_llm_proxy.vocabulary.chat import (
    Attempt,
    ChatRequest,
    Completion,
    CompletionStream,
    Failure,
    Route,
    Target,
    UpstreamRequest,
)
from secure_llm_proxy.vocabulary.events import AuditType
from secure_llm_proxy.vocabulary.inbound import Tags
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from secure_llm_proxy.vocabulary.text_fields import Channel, Direction, TextField, table_of, texts_of
from secure_llm_proxy.web.anthropic.wire import read_messages, read_prompt_to_count
from secure_llm_proxy.web.chat.wire import read_prompt
from secure_llm_proxy.web.openai.completions_request import read_completion_request
from secure_llm_proxy.web.openai.embeddings_door import read_embeddings_request
from secure_llm_proxy.web.openai.responses_request import read_response_request
from secure_llm_proxy.web.openai.wire import read_chat_completion
from tests.support.generated_requests import Generated, RequestGenerator
from tests.support.house import ScriptedStream, SmallHouse, completion_of, event_of, make_house, make_inbound
from tests.support.wire_samples import Json

MARK = re.compile(r"mk[0-9a-f]+-")
# Whom requests are written for: one provider of each kind that speaks a format of its own.
KINDS = ("openai", "anthropic", "gemini", "cohere")
_LIMITS = LimitSettings()
_UNLIMITED = RateClass(requests=10**9, burst=10**9, concurrent=10**6)

# The doors' own readings of what clients send, by the format (`RequestGenerator`'s name for it).
READERS: dict[str, Callable[[JsonObject], ChatRequest]] = {
    "own_chat": lambda body: read_prompt(body, _LIMITS),
    "openai_chat": lambda body: read_chat_completion(body, messages_max=_LIMITS.messages_max),
    "anthropic_messages": lambda body: read_messages(body, messages_max=_LIMITS.messages_max),
    "anthropic_count_tokens": lambda body: read_prompt_to_count(body, messages_max=_LIMITS.messages_max),
    "openai_completions": lambda body: read_completion_request(body, prompts_max=_LIMITS.messages_max),
    "openai_embeddings": read_embeddings_request,
    "openai_responses": lambda body: read_response_request(body, items_max=_LIMITS.messages_max),
}


class CapturingUpstream:
    """Writes as the upstream room does, and sends nothing."""

    def __init__(self) -> None:
        definitions = [
            ProviderDefinition(kind, kind, f"https://{kind}.example.org/v1", (SecretStr("sk-test"),)) for kind in KINDS
        ]
        self._providers = Providers(UpstreamSettings(), definitions)
        self.sent: list[UpstreamRequest] = []

    def write(self, target: Target, request: ChatRequest, headers: tuple[tuple[str, str], ...]) -> UpstreamRequest:
        return self._providers.write(target, request, headers)

    def complete(self, request: UpstreamRequest, cancellation: Cancellation) -> Completion:
        self.sent.append(request)
        return completion_of()

    def stream(self, request: UpstreamRequest, cancellation: Cancellation) -> CompletionStream:
        self.sent.append(request)
        return ScriptedStream((event_of("x"),), [])


@dataclass
class OneRoute:
    """Every model is the `provider`'s."""

    provider: str = KINDS[0]

    def plan(self, request: ChatRequest, tags: Tags) -> Route:
        return Route("m", (Target(self.provider, "the-model"),))

    def next_attempt(self, route: Route, failures: Sequence[Failure]) -> Attempt | None:
        return None

    def began(self, target: Target) -> None: ...

    def ended(self, target: Target) -> None: ...

    def answered(self, target: Target) -> None: ...

    def failed(self, target: Target, kind: object) -> None: ...

    def listed(self) -> tuple[str, ...]:
        return ("m",)


@dataclass
class Differential:
    """`wrong` holds a sentence for each request that was not what it should be; the counters tell what was tried."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.generator = RequestGenerator(self.seed)
        self._small: SmallHouse = make_house(key_class=_UNLIMITED, address_class=_UNLIMITED)
        self._upstream, self._routing = CapturingUpstream(), OneRoute()
        self._house = replace(self._small.house, upstream=self._upstream, routing=self._routing)

    def run(self, requests: int, *, formats: Sequence[str] = tuple(READERS), kinds: Sequence[str] = KINDS) -> None:
        for number in range(requests):
            wire_format, kind = formats[number % len(formats)], kinds[number // len(formats) % len(kinds)]
            # Only the format's own provider can be told everything that it documents.
            wild = wire_format.startswith(kind) and self.generator.maybe(0.3)
            self.compare(wire_format, kind, self.generator.request(wire_format, wild=wild))

    def compare(self, wire_format: str, kind: str, generated: Generated) -> None:
        self._routing.provider = kind
        for kept in (
            self._upstream.sent,
            self._small.journal.handed_over,
            self._small.journal.durable,
            self._small.effects,
        ):
            kept.clear()
        reply = chat(self._house, make_inbound(generated.body), READERS[wire_format])
        if isinstance(reply.outcome, RelayedStream):
            reply.outcome.close()
        sent = list(self._upstream.sent)
        starts = self._small.journal.of(AuditType.LLM_START)
        where = f"{wire_format} → {kind}"
        if isinstance(reply.outcome, ProxyError):
            self.counts[f"{where}: refused" if generated.payload is not None else "spoiled, refused"] += 1
            if sent or starts:
                self._tell(where, generated, "refused, and sent or on record as if it were")
            elif reply.outcome.status >= 500:
                self._tell(where, generated, f"{reply.outcome.status} {reply.outcome.code}")
            return
        if generated.payload is None:
            self._tell(where, generated, f"taken, though it is spoiled: {generated.why}")
            return
        self.counts[f"{where}: sent"] += 1
        if len(sent) != 1 or len(starts) != 1:
            self._tell(where, generated, f"{len(sent)} sent, {len(starts)} on record")
            return
        for sentence in wrong_with(wire_format, generated.payload, sent[0], starts[0]):
            self._tell(where, generated, sentence)

    def _tell(self, where: str, generated: Generated, sentence: str) -> None:
        self.wrong.append(f"{where}: {sentence} ({generated.body[:600]!r})")


def wrong_with(wire_format: str, payload: dict[str, Json], sent: UpstreamRequest, start: AuditEvent) -> list[str]:
    wrong = []
    if not start.body.startswith(b'{"request":' + sent.body + b","):
        wrong.append("the record holds other bytes than were sent")
    received = strictly(sent.body)
    if wire_format == "own_chat":
        wire_format = "openai_chat"
        payload = _as_chat(payload)
    seen = list(texts_of(payload, table_of(wire_format, Direction.REQUEST)))
    got = list(texts_of(received, table_of(sent.format, Direction.REQUEST)))
    if not sent.translated:
        ours = {"model", "stream", "stream_options"}
        expected = {name: value for name, value in payload.items() if name not in ours}
        actual = {name: value for name, value in received.items() if name not in ours}
        # As texts, which tell 1 from 1.0 and True, and keep the order.
        if json.dumps(expected) != json.dumps(actual):
            wrong.append("the provider gets another request")
        if received["model"] != "the-model":
            wrong.append(f"the provider is asked for {received['model']!r}")
        if _without_model(seen) != _without_model(got):
            wrong.append("the corridor sees other texts than the provider")
        return wrong
    before, after = _marks(seen), _marks(got)
    hidden = (set(MARK.findall(sent.body.decode())) | set(after)) - set(before)
    if hidden:
        wrong.append(f"the provider gets texts that the corridor has not seen: {sorted(hidden)}")
    for mark, field_ in after.items():
        if mark in before and not _alike(before[mark].channel, field_.channel):
            wrong.append(
                f"{mark} is {before[mark].channel} at {before[mark].path}, and {field_.channel} at {field_.path}"
            )
    # A parameter that is null, or holds nothing, is one that was left out.
    lost = [
        field_
        for mark, field_ in before.items()
        if mark not in after and payload.get(str(field_.path[0])) not in _NOTHING and not _told(field_, sent.dropped)
    ]
    wrong += [f"lost without a word (dropped: {sent.dropped}): {field_}" for field_ in lost]
    return wrong


_NOTHING: tuple[Json, ...] = (None, [], {})


def strictly(body: bytes) -> dict[str, Json]:
    """`body` as a parser reads it that is not ours, and minds a name that stands twice."""

    def pairs(items: list[tuple[str, Json]]) -> dict[str, Json]:
        assert len(dict(items)) == len(items), "a name stands twice in what was sent"
        return dict(items)

    value = json.loads(body.decode("utf-8"), object_pairs_hook=pairs)
    assert isinstance(value, dict)
    return value


def _as_chat(payload: dict[str, Json]) -> dict[str, Json]:
    """What `/chat` makes of its short form (docs/api.md)."""
    prompt = payload.get("prompt", payload.get("message"))
    further = {name: value for name, value in payload.items() if name not in {"prompt", "message"}}
    return {**further, "messages": [{"role": "user", "content": prompt}]}


def _without_model(texts: list[TextField]) -> list[TextField]:
    return [item for item in texts if item.path[0] != "model"]


def _marks(texts: list[TextField]) -> dict[str, TextField]:
    return {mark: item for item in texts for mark in MARK.findall(_opened(item.text))}


def _opened(text: str) -> str:
    """A text file in base64 is opened by whoever inspects it."""
    head, found, data = text.partition(";base64,")
    try:
        return base64.b64decode(data if found and head.startswith("data:text/") else text, validate=True).decode()
    except ValueError:
        return text


def _alike(before: Channel, after: Channel) -> bool:
    return before == after or (before, after) in _ALIKE


# What a model says beside its calls of tools is to Cohere the plan for them; who knows no documents is told of them by the user.
# Whatever else changes its channel on the way is a mistake in a table or a translator.
_ALIKE = frozenset({(Channel.ASSISTANT, Channel.REASONING), (Channel.FILE, Channel.USER)})


def _told(item: TextField, dropped: tuple[str, ...]) -> bool:
    """True if the client is told that this was left out: by the parameter's name."""
    names = [str(step) for step in item.path if isinstance(step, str)]
    return any(name == ".".join(names[:length]) for name in dropped for length in range(1, len(names) + 1))
