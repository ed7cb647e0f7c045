"""What the demo model says: a pure function of the question."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MODEL = "demo"
# every answer carries the same time, so that equal questions have equal answers; 2026-11-21T00:00:00Z
CREATED = 1_795_219_200
_CHOICES_MAX = 8
_FIRST_WORDS = 12
_WORDS_PER_CHUNK = 3


class Refusal(Exception):
    """A request that the demo does not answer, with the parts of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, hang_up: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.hang_up = hang_up

    def body(self) -> bytes:
        error: Json = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return encode({"error": error})


@dataclass(frozen=True, slots=True)
class Question:
    """A chat request as far as the demo understands it. The demo counts a word as a token."""

    id: str
    text: str
    prompt_tokens: int
    choices: int
    tokens_max: int | None
    stream: bool
    include_usage: bool


def encode(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def read_question(body: bytes) -> Question:
    """Raises `Refusal` in OpenAI's words."""
    try:
        request: Json = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "The request body is not valid JSON.") from None
    if not isinstance(request, dict):
        raise Refusal(400, "The request body must be a JSON object.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "You must provide a model parameter.", param="model")
    if model != MODEL:
        raise Refusal(
            404, "This model does not exist; the demo upstream has only the model 'demo'.", code="model_not_found"
        )
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages must be a list that is not empty.", param="messages")
    texts = [_text(message) for message in messages]
    options = request.get("stream_options")
    return Question(
        id="chatcmpl-demo-" + hashlib.sha256(body).hexdigest()[:24],
        text=texts[-1],
        prompt_tokens=sum(len(text.split()) for text in texts),
        choices=_whole_number(request, "n", at_most=_CHOICES_MAX) or 1,
        tokens_max=_whole_number(request, "max_completion_tokens") or _whole_number(request, "max_tokens"),
        stream=request.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def completion(question: Question) -> Json:
    """Return the `chat.completion` object."""
    answers = [_answer(question, index) for index in range(question.choices)]
    choices: list[Json] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": " ".join(words), "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (words, reason) in enumerate(answers)
    ]
    return {
        "id": question.id,
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": choices,
        "usage": _usage(question, answers),
    }


def chunks(question: Question) -> Iterator[Json]:
    """Give the `chat.completion.chunk` objects: a role, the words three at a time, the reason of the end, the usage."""
    answers = [_answer(question, index) for index in range(question.choices)]
    for index in range(question.choices):
        yield _chunk(question, index, {"role": "assistant", "content": ""}, None)
    for start in range(0, max(len(words) for words, _ in answers), _WORDS_PER_CHUNK):
        for index, (words, _) in enumerate(answers):
            piece = words[start : start + _WORDS_PER_CHUNK]
            if piece:
                yield _chunk(question, index, {"content": (" " if start else "") + " ".join(piece)}, None)
    for index, (_, reason) in enumerate(answers):
        yield _chunk(question, index, {}, reason)
    if question.include_usage:
        yield {**_frame(question), "choices": [], "usage": _usage(question, answers)}


def model_list() -> Json:
    return {"object": "list", "data": [model_entry()]}


def model_entry() -> Json:
    return {"id": MODEL, "object": "model", "created": CREATED, "owned_by": "secure-llm-proxy"}


def _answer(question: Question, index: int) -> tuple[list[str], str]:
    """The words of one choice, and why it ends."""
    words = question.text.split()
    shown = " ".join(words[:_FIRST_WORDS])
    sentence = (
        "This is the demo model of Secure LLM Proxy: no language model was asked, and nothing left this machine. "
        f"Your last message has {len(words)} {'word' if len(words) == 1 else 'words'}"
    )
    sentence += f" and begins with: {shown}" if shown else "."
    if question.choices > 1:
        sentence = f"Answer {index + 1} of {question.choices}. {sentence}"
    said = sentence.split()
    if question.tokens_max is not None and question.tokens_max < len(said):
        return said[: question.tokens_max], "length"
    return said, "stop"


def _usage(question: Question, answers: list[tuple[list[str], str]]) -> Json:
    completion_tokens = sum(len(words) for words, _ in answers)
    return {
        "prompt_tokens": question.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": question.prompt_tokens + completion_tokens,
    }


def _frame(question: Question) -> dict[str, Json]:
    return {"id": question.id, "object": "chat.completion.chunk", "created": CREATED, "model": MODEL}


def _chunk(question: Question, index: int, delta: dict[str, Json], reason: str | None) -> Json:
    choices: list[Json] = [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]
    return {**_frame(question), "choices": choices}


def _text(message: Json) -> str:
    if not isinstance(message, dict):
        raise Refusal(400, "Every message must be an object.", param="messages")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    raise Refusal(400, "A message's content must be a string or a list of parts.", param="messages")


def _whole_number(request: dict[str, Json], name: str, *, at_most: int | None = None) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (at_most is not None and value > at_most):
        bound = f" of at most {at_most}" if at_most is not None else ""
        raise Refusal(400, f"{name} must be a whole number above 0{bound}.", param=name)
    return value
