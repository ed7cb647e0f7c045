"""Cohere's v2/embed. Pure: no socket here. Source: Cohere API v2 reference "Embed", read 2026-11."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.cohere_chat import whole
from secure_llm_proxy.upstream.formats.cohere_errors import reported_error
from secure_llm_proxy.upstream.formats.embeddings import no_stream, record_of, texts_to_embed, vectors_of
from secure_llm_proxy.upstream.formats.face import ReportedError, Written, read_object, unreadable, unsupported
from secure_llm_proxy.upstream.formats.parameters import Losses, said
from secure_llm_proxy.vocabulary.chat import Completion, Usage
from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest, Embeddings
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.upstream.formats.face import StreamReader
    from secure_llm_proxy.vocabulary.conversation import Neutral
    from secure_llm_proxy.vocabulary.providers import ProviderKind

# It must be told what the vectors are for, and OpenAI's clients can't: whoever embeds most embeds documents.
_KIND_UNSAID = "search_document"
_KINDS = frozenset({"search_document", "search_query", "classification", "clustering"})


class CohereEmbed:
    """Vectors as numbers. A text that is too long is an error, as it is with OpenAI, and not cut in silence."""

    format = WireFormat.COHERE_EMBED

    def adapt(self, payload: JsonObject, model: str, kind: ProviderKind, *, stream: bool, ask_usage: bool) -> Written:
        del payload, model, kind, stream, ask_usage
        raise unsupported("model", "no endpoint of this proxy speaks its wire format.")

    def write(self, neutral: Neutral, model: str, kind: ProviderKind, *, ask_usage: bool) -> Written:
        del ask_usage
        if not isinstance(neutral, EmbeddingRequest):
            raise unsupported("model", "it makes embeddings alone.")
        lost = Losses()
        texts: list[JsonValue] = list(texts_to_embed(neutral, kind))
        wanted = neutral.kind or _KIND_UNSAID
        if wanted not in _KINDS:
            lost.drop("input_type")
            wanted = _KIND_UNSAID
        if neutral.user is not None:
            lost.drop("user")
        lost.drop_further(neutral.further)
        payload = said(
            model=model,
            texts=texts,
            input_type=wanted,
            embedding_types=["float"],
            output_dimension=neutral.dimensions,
            truncate="NONE",
        )
        return Written(payload, lost.names)

    def read(self, body: bytes, *, model: str, translated: bool) -> Completion:
        payload = read_object(body)
        embeddings = payload.get("embeddings")
        listed = embeddings.get("float") if isinstance(embeddings, dict) else None
        if not isinstance(listed, list):
            raise unreadable("the answer has no embeddings")
        vectors = vectors_of(listed)
        answer = Embeddings(vectors) if translated else None
        record = record_of(payload, "embeddings", len(vectors), body)
        return Completion(payload, "", _usage(payload), model, self.format, answer, record)

    def stream(self, *, translated: bool, shows_usage: bool) -> StreamReader:
        del translated, shows_usage
        raise no_stream()

    def read_error(self, payload: JsonObject) -> ReportedError:
        return reported_error(payload)


def _usage(payload: JsonObject) -> Usage:
    meta = payload.get("meta")
    billed = meta.get("billed_units") if isinstance(meta, dict) else None
    tokens = whole(billed.get("input_tokens")) if isinstance(billed, dict) else None
    return Usage(tokens, None, tokens)
