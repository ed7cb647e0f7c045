"""Gemini's batchEmbedContents. Pure: no socket here. Source: Gemini API reference "Embeddings", read 2026-11."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.embeddings import no_stream, record_of, texts_to_embed, vectors_of
from secure_llm_proxy.upstream.formats.face import ReportedError, Written, read_object, unreadable, unsupported
from secure_llm_proxy.upstream.formats.gemini_errors import raise_reported, reported_error
from secure_llm_proxy.upstream.formats.parameters import Losses, said
from secure_llm_proxy.vocabulary.chat import Completion, Usage
from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest, Embeddings
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.formats.face import StreamReader
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_TASK_OF_KIND = {
    "search_document": "RETRIEVAL_DOCUMENT",
    "search_query": "RETRIEVAL_QUERY",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}


class GeminiEmbed:
    """Every text is a request of its own within the batch. Vectors always come as numbers."""

    format = WireFormat.GEMINI_EMBED

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del payload, model, kind, stream, ask_usage
        raise unsupported("model", "no endpoint of this proxy speaks its wire format.")

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del ask_usage
        if not isinstance(neutral, EmbeddingRequest):
            raise unsupported("model", "it makes embeddings alone.")
        lost = Losses()
        texts = texts_to_embed(neutral, kind)
        task = _TASK_OF_KIND.get(neutral.kind) if neutral.kind is not None else None
        if neutral.kind is not None and task is None:
            lost.drop("input_type")
        if neutral.user is not None:
            lost.drop("user")
        lost.drop_further(neutral.further)
        requests: list[JsonValue] = [
            said(
                model=f"models/{model}",
                content={"parts": [{"text": text}]},
                taskType=task,
                outputDimensionality=neutral.dimensions,
            )
            for text in texts
        ]
        return Written({"requests": requests}, lost.names)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        raise_reported(payload)
        listed = payload.get("embeddings")
        if not isinstance(listed, list):
            raise unreadable("the answer has no embeddings")
        vectors = vectors_of([entry.get("values") if isinstance(entry, dict) else None for entry in listed])
        usage = payload.get("usageMetadata")
        counted = usage.get("promptTokenCount") if isinstance(usage, dict) else None
        tokens = counted if type(counted) is int and counted >= 0 else None
        answer = Embeddings(vectors) if translated else None
        record = record_of(payload, "embeddings", len(vectors), body)
        return Completion(payload, "", Usage(tokens, None, tokens), model, self.format, answer, record)

    def stream(self, *, translated: bool, shows_usage: bool) -> StreamReader:
        del translated, shows_usage
        raise no_stream()

    def read_error(self, payload: JsonObject) -> ReportedError:
        return reported_error(payload)
