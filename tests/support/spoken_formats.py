"""What a provider says in each wire format: a whole answer, the events of a stream, what ends one, an error.

Written by us from the documentation of OpenAI (chat, completions, responses, embeddings), Anthropic (messages), Google (Gemini
v1beta) and Cohere (v2), read 2026-11-21. `events` leaves out `done`, what a stream in good order ends with, and without `finish`
also what says why the model stopped.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_CREATED = 1_795_219_200


def dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def data_event(value: Json, name: str | None = None) -> bytes:
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + dump(value) + b"\n\n"


class Saying:
    """What is to be said: the text, in how many pieces, for which model, at what price."""

    def __init__(self, model: str | None, text: str, pieces: int, usage: Mapping[str, Json], request: Json) -> None:
        self.model = model
        self.text = text
        self.usage = usage
        self.request = request
        edges = [len(text) * position // max(pieces, 1) for position in range(max(pieces, 1) + 1)]
        self.pieces = [text[start:end] for start, end in itertools.pairwise(edges)]

    @property
    def tokens_in(self) -> Json:
        return self.usage.get("prompt_tokens")

    @property
    def tokens_out(self) -> Json:
        return self.usage.get("completion_tokens")


class SpokenFormat(Protocol):
    done: bytes

    def answer(self, saying: Saying) -> Json: ...

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]: ...

    def error(self, message: str, code: str | None = None) -> Json:
        """The error object that a failed request is answered with."""
        ...

    def error_event(self, message: str) -> bytes:
        """How a stream tells that it has failed."""
        ...


class OpenAiChat:
    done = b"data: [DONE]\n\n"

    def answer(self, saying: Saying) -> Json:
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", "content": saying.text},
            "logprobs": None,
            "finish_reason": "stop",
        }
        return self._body(saying, "chat.completion", [choice], dict(saying.usage))

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]:
        """With `stream_options.include_usage` the last event tells what it cost."""

        def delta(part: dict[str, Json], reason: str | None = None) -> bytes:
            choice: Json = {"index": 0, "delta": part, "logprobs": None, "finish_reason": reason}
            return data_event(self._body(saying, "chat.completion.chunk", [choice]))

        events = [delta({"role": "assistant", "content": ""}), *(delta({"content": piece}) for piece in saying.pieces)]
        if finish:
            events.append(delta({}, "stop"))
            options = saying.request.get("stream_options") if isinstance(saying.request, dict) else None
            if isinstance(options, dict) and options.get("include_usage"):
                events.append(data_event(self._body(saying, "chat.completion.chunk", [], dict(saying.usage))))
        return events

    def error(self, message: str, code: str | None = None) -> Json:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}

    def error_event(self, message: str) -> bytes:
        return data_event(self.error(message, "server_error"))

    def _body(self, saying: Saying, kind: str, choices: list[Json], usage: Json = None) -> Json:
        body: dict[str, Json] = {
            "id": "chatcmpl-test",
            "object": kind,
            "created": _CREATED,
            "model": saying.model,
            "choices": choices,
        }
        return body if usage is None else {**body, "usage": usage}


class OpenAiCompletions(OpenAiChat):
    def answer(self, saying: Saying) -> Json:
        choice: Json = {"index": 0, "text": saying.text, "logprobs": None, "finish_reason": "stop"}
        return self._body(saying, "text_completion", [choice], dict(saying.usage))

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]:
        def event(text: str, reason: str | None = None) -> bytes:
            choice: Json = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
            return data_event(self._body(saying, "text_completion", [choice]))

        return [*(event(piece) for piece in saying.pieces), *([event("", "stop")] if finish else [])]


class OpenAiEmbeddings(OpenAiChat):
    def answer(self, saying: Saying) -> Json:
        asked = saying.request.get("input") if isinstance(saying.request, dict) else None
        count = len(asked) if isinstance(asked, list) and asked and not isinstance(asked[0], int) else 1
        data: list[Json] = [
            {"object": "embedding", "index": index, "embedding": [0.25, -0.5, 1.0]} for index in range(count)
        ]
        usage: Json = {"prompt_tokens": saying.tokens_in, "total_tokens": saying.tokens_in}
        return {"object": "list", "model": saying.model, "data": data, "usage": usage}


class OpenAiResponses(OpenAiChat):
    done = b""

    def answer(self, saying: Saying) -> Json:
        return self._response(saying, "completed", [self._message(saying)])

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]:
        numbers = itertools.count()

        def event(kind: str, **fields: Json) -> bytes:
            return data_event(
                {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}, f"response.{kind}"
            )

        here: dict[str, Json] = {"item_id": "msg_test", "output_index": 0, "content_index": 0}
        part: Json = {"type": "output_text", "text": saying.text, "annotations": []}
        events = [
            event("created", response=self._response(saying, "in_progress", [])),
            event("in_progress", response=self._response(saying, "in_progress", [])),
            event("output_item.added", output_index=0, item=self._message(saying, whole=False)),
            event("content_part.added", **here, part={"type": "output_text", "text": "", "annotations": []}),
            *(event("output_text.delta", **here, delta=piece, logprobs=[]) for piece in saying.pieces),
        ]
        if finish:
            events += [
                event("output_text.done", **here, text=saying.text, logprobs=[]),
                event("content_part.done", **here, part=part),
                event("output_item.done", output_index=0, item=self._message(saying)),
                event("completed", response=self.answer(saying)),
            ]
        return events

    def error_event(self, message: str) -> bytes:
        return data_event(
            {"type": "error", "code": "server_error", "message": message, "param": None, "sequence_number": 9}, "error"
        )

    def _message(self, saying: Saying, *, whole: bool = True) -> Json:
        content: list[Json] = [{"type": "output_text", "text": saying.text, "annotations": []}] if whole else []
        status = "completed" if whole else "in_progress"
        return {"type": "message", "id": "msg_test", "role": "assistant", "status": status, "content": content}

    def _response(self, saying: Saying, status: str, output: list[Json]) -> Json:
        usage: Json = {
            "input_tokens": saying.tokens_in,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": saying.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": saying.usage.get("total_tokens"),
        }
        return {
            "id": "resp_test",
            "object": "response",
            "created_at": _CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": saying.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage if status == "completed" else None,
        }


class AnthropicMessages:
    done = data_event({"type": "message_stop"}, "message_stop")

    def answer(self, saying: Saying) -> Json:
        return self._message(saying, [{"type": "text", "text": saying.text}], "end_turn", saying.tokens_out)

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]:
        def event(kind: str, **fields: Json) -> bytes:
            return data_event({"type": kind, **fields}, kind)

        events = [
            event("message_start", message=self._message(saying, [], None, 1)),
            event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            event("ping"),
            *(
                event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
                for piece in saying.pieces
            ),
        ]
        if finish:
            events += [
                event("content_block_stop", index=0),
                event(
                    "message_delta",
                    delta={"stop_reason": "end_turn", "stop_sequence": None},
                    usage={"output_tokens": saying.tokens_out},
                ),
            ]
        return events

    def error(self, message: str, code: str | None = None) -> Json:
        return {"type": "error", "error": {"type": code or "invalid_request_error", "message": message}}

    def error_event(self, message: str) -> bytes:
        return data_event(self.error(message, "overloaded_error"), "error")

    def _message(self, saying: Saying, content: list[Json], reason: str | None, tokens_out: Json) -> Json:
        return {
            "id": "msg_test",
            "type": "message",
            "role": "assistant",
            "model": saying.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": {"input_tokens": saying.tokens_in, "output_tokens": tokens_out},
        }


class GeminiGenerate:
    done = b""

    def answer(self, saying: Saying) -> Json:
        return self._body(saying, saying.text, "STOP")

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]:
        *before, last = saying.pieces
        events = [data_event(self._body(saying, piece, None)) for piece in before]
        return [*events, data_event(self._body(saying, last, "STOP" if finish else None))]

    def error(self, message: str, code: str | None = None) -> Json:
        return {"error": {"code": 400, "message": message, "status": code or "INVALID_ARGUMENT"}}

    def error_event(self, message: str) -> bytes:
        return data_event({"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}})

    def _body(self, saying: Saying, text: str, reason: str | None) -> Json:
        candidate: dict[str, Json] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        if reason is not None:
            candidate["finishReason"] = reason
        usage: Json = {
            "promptTokenCount": saying.tokens_in,
            "candidatesTokenCount": saying.tokens_out,
            "totalTokenCount": saying.usage.get("total_tokens"),
        }
        return {
            "candidates": [candidate],
            "usageMetadata": usage,
            "modelVersion": saying.model,
            "responseId": "Il0taoSYJ5Cez7",
        }


class CohereChat:
    done = b""

    def answer(self, saying: Saying) -> Json:
        return {
            "id": "c14c80c3",
            "finish_reason": "COMPLETE",
            "message": {"role": "assistant", "content": [{"type": "text", "text": saying.text}]},
            "usage": self._usage(saying),
        }

    def events(self, saying: Saying, *, finish: bool = True) -> list[bytes]:
        def event(kind: str, **fields: Json) -> bytes:
            return data_event({"type": kind, **fields}, kind)

        def content(text: str, **more: Json) -> Json:
            return {"message": {"content": {**more, "text": text}}}

        events = [
            event("message-start", id="c14c80c3", delta={"message": {"role": "assistant", "content": []}}),
            event("content-start", index=0, delta=content("", type="text")),
            *(event("content-delta", index=0, delta=content(piece)) for piece in saying.pieces),
        ]
        if finish:
            events += [
                event("content-end", index=0),
                event("message-end", delta={"finish_reason": "COMPLETE", "usage": self._usage(saying)}),
            ]
        return events

    def error(self, message: str, code: str | None = None) -> Json:
        return {"id": "e1", "message": message}

    def error_event(self, message: str) -> bytes:
        return data_event({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": message}}, "message-end")

    def _usage(self, saying: Saying) -> Json:
        return {"tokens": {"input_tokens": saying.tokens_in, "output_tokens": saying.tokens_out}}


OPENAI_CHAT = OpenAiChat()
_BY_END_OF_PATH: tuple[tuple[str, SpokenFormat], ...] = (
    ("/chat/completions", OPENAI_CHAT),
    ("/completions", OpenAiCompletions()),
    ("/embeddings", OpenAiEmbeddings()),
    ("/responses", OpenAiResponses()),
    ("/messages", AnthropicMessages()),
    (":generateContent", GeminiGenerate()),
    (":streamGenerateContent", GeminiGenerate()),
    ("/v2/chat", CohereChat()),
)


def spoken_at(path: str) -> SpokenFormat | None:
    """The format that is spoken at a URL's path; None where nothing is served."""
    for end, spoken in _BY_END_OF_PATH:
        if path.partition("?")[0].endswith(end):
            return spoken
    return None
