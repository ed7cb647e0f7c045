"""What formats of embeddings share. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.face import unreadable, unsupported
from secure_llm_proxy.upstream.formats.parameters import check_limit
from secure_llm_proxy.vocabulary.providers import Limit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secure_llm_proxy.foundation.errors import InvalidRequest
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest
    from secure_llm_proxy.vocabulary.providers import ProviderKind

_NUMBERS, _FLOATS = frozenset({int, float}), frozenset({float})


def texts_to_embed(request: EmbeddingRequest, kind: ProviderKind) -> list[str]:
    """The inputs as texts. Raises `InvalidRequest` for lists of tokens, which are OpenAI's own, and for too many inputs."""
    check_limit(kind, Limit.EMBEDDING_INPUTS, len(request.inputs), "input")
    texts: list[str] = []
    for text in request.inputs:
        if not isinstance(text, str):
            raise unsupported("input", "it reads texts, not lists of tokens.")
        texts.append(text)
    return texts


def vectors_of(listed: Iterable[JsonValue]) -> tuple[tuple[float, ...], ...]:
    """Vectors of numbers. Raises `UpstreamFailed` for anything else."""
    vectors: list[tuple[float, ...]] = []
    for values in listed:
        if not isinstance(values, list):
            raise unreadable("a vector is no list")
        kinds = set(map(type, values))
        if kinds == _FLOATS:
            # as nearly always: thousands of numbers that need not be made again
            vectors.append(tuple(values))  # type: ignore[arg-type]  # looked at above
        elif kinds <= _NUMBERS:
            vectors.append(tuple(map(float, values)))  # type: ignore[arg-type]  # looked at above
        else:
            raise unreadable("a vector holds what is no number")
    return tuple(vectors)


def record_of(payload: JsonObject, vectors: str, count: int, body: bytes) -> JsonObject:
    """What the audit log keeps of an answer: all but the vectors, which stand under the name `vectors`. They are numbers that
    say nothing to its reader; by the digest of the provider's answer they can be found to be these.
    """
    kept = {name: value for name, value in payload.items() if name != vectors}
    return {**kept, "vectors": {"count": count, "sha256": sha256(body).hexdigest()}}


def no_stream() -> InvalidRequest:
    return unsupported("stream", "this comes as a whole.")
