"""`POST /v1/embeddings`: texts in, vectors out, as OpenAI's clients know it.

Source: OpenAI API reference, "Create embeddings", read 2026-11.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as NotBase64
from collections.abc import Callable
from functools import partial
from struct import pack, unpack
from typing import Any

from pydantic import ValidationError

from secure_llm_proxy.foundation.errors import ProxyError, UpstreamFailed
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.gateway import Reply, chat
from secure_llm_proxy.vocabulary.chat import ChatRequest, Completion
from secure_llm_proxy.vocabulary.conversation import EmbeddingRequest, Embeddings
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.answers import Answer, answer_chat
from secure_llm_proxy.web.arrival import Arrival
from secure_llm_proxy.web.errors import error_body
from secure_llm_proxy.web.generation import PassedOn, StreamWriter
from secure_llm_proxy.web.openai.completions_request import check_texts_or_tokens
from secure_llm_proxy.web.openai.fields import integer_or_none, invalid_value, text_or_none
from secure_llm_proxy.web.wire import Parameters, invalid

_FLOAT32_MAX = 3.4028234663852886e38
_READ = frozenset({"dimensions", "encoding_format", "input", "input_type", "model", "user"})
_NEEDS = frozenset({Capability.EMBEDDINGS.value})


class EmbeddingsRequest(Parameters):
    input: Any = None


_validated: Callable[[object], EmbeddingsRequest] = EmbeddingsRequest.__pydantic_validator__.validate_python


def read_embeddings_request(body: JsonObject) -> ChatRequest:
    """Raises `InvalidRequest` naming the parameter. The payload keeps every parameter as it came."""
    try:
        request = _validated(body)
    except ValidationError as error:
        raise invalid(error) from None
    check_texts_or_tokens(body.get("input"), "input")
    if request.stream:
        invalid_value("stream", "embeddings come as a whole.")
    return ChatRequest(request.model, False, body, WireFormat.OPENAI_EMBEDDINGS, read_inputs, _NEEDS)


def read_inputs(payload: JsonObject) -> EmbeddingRequest:
    """What is to be embedded, in neutral form. `input_type` is the name by which compatible servers know the vectors' use.

    Raises `InvalidRequest`.
    """
    given = payload.get("input")
    check_texts_or_tokens(given, "input")
    encoding = text_or_none(payload, "encoding_format")
    if encoding not in (None, "float", "base64"):
        invalid_value("encoding_format", "it must be `float` or `base64`.")
    dimensions = integer_or_none(payload, "dimensions")
    if dimensions is not None and dimensions < 1:
        invalid_value("dimensions", "it must be at least 1.")
    return EmbeddingRequest(
        _inputs(given),
        dimensions,
        encoding == "base64",
        text_or_none(payload, "input_type"),
        text_or_none(payload, "user"),
        {name: value for name, value in payload.items() if name not in _READ and value is not None},
    )


def _inputs(given: JsonValue) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (given,)
    items = given if isinstance(given, list) else []
    if items and isinstance(items[0], int):
        # one text, as its tokens
        items = [items]
    return tuple(
        item if isinstance(item, str) else tuple(token for token in item if isinstance(token, int))
        for item in items
        if isinstance(item, str | list)
    )


class EmbeddingsFormat:
    """What came in this format leaves as it came; vectors of another one are written as numbers, or as base64 of
    little-endian float32 where the client asked for that, as OpenAI's SDKs do unasked.
    """

    def whole(self, completion: Completion, reply: Reply) -> object:
        answer = completion.answer
        if answer is None:
            return completion.payload
        if not isinstance(answer, Embeddings):
            raise TypeError("embeddings were asked for")
        asked = reply.request is not None and reply.request.payload.get("encoding_format") == "base64"
        write = _as_base64 if asked else _as_numbers
        told: dict[str, object] = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": at, "embedding": write(vector)}
                for at, vector in enumerate(answer.vectors)
            ],
            "model": reply.facts.model or completion.model,
        }
        tokens = completion.usage.prompt_tokens
        if tokens is not None:
            told["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        return told

    def stream(self, reply: Reply, *, translated: bool) -> StreamWriter:
        """Never asked for: a request for a stream is refused when it is read."""
        del reply, translated
        return PassedOn()

    def error_body(self, error: ProxyError) -> bytes:
        return error_body(error)


def _as_base64(vector: tuple[float, ...] | str) -> str:
    if isinstance(vector, str):
        return vector
    try:
        packed = pack(f"<{len(vector)}f", *vector)
    except OverflowError:
        bounded = [max(-_FLOAT32_MAX, min(value, _FLOAT32_MAX)) for value in vector]
        packed = pack(f"<{len(vector)}f", *bounded)
    return b64encode(packed).decode("ascii")


def _as_numbers(vector: tuple[float, ...] | str) -> list[float]:
    if not isinstance(vector, str):
        return list(vector)
    try:
        packed = b64decode(vector, validate=True)
    except NotBase64:
        packed = b"?"
    if len(packed) % 4:
        raise UpstreamFailed(
            "The provider sent an answer that can't be read.", detail="a vector is no base64 of float32"
        )
    return list(unpack(f"<{len(packed) // 4}f", packed))


_EMBEDDINGS = EmbeddingsFormat()


def create_embeddings(arrival: Arrival) -> Answer:
    ask = partial(chat, arrival.web.house, read_request=read_embeddings_request)
    return answer_chat(arrival, "/v1/embeddings", ask, _EMBEDDINGS)
