"""OpenAI's embeddings. Pure: no socket here. Source: OpenAI API reference, "Embeddings"; Mistral and Together AI API
references, read 2026-11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.foundation.errors import FailureKind, UpstreamFailed
from secure_llm_proxy.upstream.formats.embeddings import no_stream, record_of, vectors_of
from secure_llm_proxy.upstream.formats.face import REPORTED_ERROR, Written, read_object, unreadable, unsupported
from secure_llm_proxy.upstream.formats.openai_chat import OpenAiChat, error_name, usage_of
from secure_llm_proxy.upstream.formats.openai_dialect import in_dialect
from secure_llm_proxy.upstream.formats.parameters import Losses
from secure_llm_proxy.vocabulary.chat import Completion, Usage
from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest, Embeddings
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.formats.face import ReportedError, StreamReader
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_CHAT = OpenAiChat()


class OpenAiEmbeddings:
    """Vectors as numbers, or as base64 of little-endian float32 where that was asked for."""

    format = WireFormat.OPENAI_EMBEDDINGS

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del stream, ask_usage
        dropped: tuple[str, ...] = ()
        if kind.quirks:
            payload, dropped = in_dialect(payload, kind)
        return Written({**payload, "model": model}, dropped)

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del ask_usage
        if not isinstance(neutral, EmbeddingRequest):
            raise unsupported("model", "it makes embeddings alone.")
        lost = Losses()
        inputs: list[JsonValue] = [text if isinstance(text, str) else list(text) for text in neutral.inputs]
        payload: JsonObject = {"input": inputs}
        wishes: dict[str, JsonValue] = {
            "dimensions": neutral.dimensions,
            "encoding_format": "base64" if neutral.base64 else None,
            "user": neutral.user,
        }
        for name, value in wishes.items():
            if value is None:
                continue
            if name in kind.refuses:
                raise unsupported(name, "its vectors have one length.")
            payload[name] = value
        if neutral.kind is not None:
            lost.drop("input_type")
        lost.drop_further(neutral.further)
        payload, dropped = in_dialect(payload, kind)
        return Written({**payload, "model": model}, (*lost.names, *dropped))

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        if payload.get("error"):
            raise UpstreamFailed(
                REPORTED_ERROR,
                failure=FailureKind.OVERLOADED,
                detail=f"error object in a 200 answer: {error_name(payload)}",
            )
        entries = payload.get("data")
        if not isinstance(entries, list):
            raise unreadable("the answer has no list of embeddings")
        vectors = [entry.get("embedding") if isinstance(entry, dict) else None for entry in entries]
        if not all(isinstance(vector, list | str) for vector in vectors):
            raise unreadable("an embedding is neither a list nor a text")
        answer = Embeddings(_vectors(vectors)) if translated else None
        named, usage = payload.get("model"), usage_of(payload) or Usage()
        shown = named if type(named) is str and named else model
        record = record_of(payload, "data", len(vectors), body)
        return Completion(payload, "", usage, shown, self.format, answer, record)

    def stream(self, *, translated: bool, shows_usage: bool) -> StreamReader:
        del translated, shows_usage
        raise no_stream()

    def read_error(self, payload: JsonObject) -> ReportedError:
        return _CHAT.read_error(payload)


def _vectors(listed: list[JsonValue]) -> tuple[tuple[float, ...] | str, ...]:
    return tuple(vector if isinstance(vector, str) else vectors_of([vector])[0] for vector in listed)
