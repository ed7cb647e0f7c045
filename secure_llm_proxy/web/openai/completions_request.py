"""OpenAI's older completion request: read strictly where it matters to us, passed on as it is, or asked as a chat.

Source: OpenAI API reference, "Create completion", read 2026-11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest
from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
from secure_llm_proxy.vocabulary.chat import ChatRequest
from secure_llm_proxy.vocabulary.conversation import Conversation, Message, Role, Text
from secure_llm_proxy.vocabulary.providers import Capability
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from secure_llm_proxy.web.openai.fields import (
    flag_or_none,
    integer_or_none,
    invalid_value,
    missing,
    number_or_none,
    stop_of,
    stream_options_of,
    text_or_none,
    unsupported,
    wrong_type,
)
from secure_llm_proxy.web.wire import Parameters, invalid


class CompletionRequest(Parameters):
    prompt: Any = None


_validated: Callable[[object], CompletionRequest] = CompletionRequest.__pydantic_validator__.validate_python

_READ = frozenset(
    {
        "best_of", "echo", "frequency_penalty", "logprobs", "max_tokens", "model", "n", "presence_penalty", "prompt", "seed",
        "stop", "stream", "stream_options", "suffix", "temperature", "top_k", "top_p", "user",
    }
)  # fmt: skip


def read_completion_request(body: JsonObject, *, prompts_max: int) -> ChatRequest:
    """Raises `InvalidRequest` naming the parameter. The payload keeps every parameter as it came."""
    try:
        request = _validated(body)
    except ValidationError as error:
        raise invalid(error) from None
    check_texts_or_tokens(body.get("prompt"), "prompt")
    prompt = body["prompt"]
    if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > prompts_max:
        raise InvalidRequest(
            f"Too many prompts: {len(prompt)}, at most {prompts_max}.", code=ErrorCode.INVALID_VALUE, param="prompt"
        )
    needs: set[str] = set()
    if request.n is not None and request.n > 1:
        needs.add(Capability.SEVERAL_CHOICES)
    if body.get("logprobs") is not None:
        needs.add(Capability.LOGPROBS)
    return ChatRequest(
        request.model, bool(request.stream), body, WireFormat.OPENAI_COMPLETIONS, read_prompt, frozenset(needs)
    )


def check_texts_or_tokens(value: JsonValue, param: str) -> None:
    """A text, texts, tokens, or lists of tokens. Raises `InvalidRequest` for anything else."""
    if value is None:
        missing(param)
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        wrong_type(param, "a string or a list")
    if not value:
        invalid_value(param, "it is empty.")
    kind = type(value[0])
    if kind not in (str, int, list):
        wrong_type(f"{param}.0", "a string, a token or a list of tokens")
    for at, item in enumerate(value):
        if type(item) is not kind:
            wrong_type(f"{param}.{at}", "of the same type as the first one")
        if isinstance(item, list):
            if not item:
                invalid_value(f"{param}.{at}", "it is empty.")
            if not {int}.issuperset(map(type, item)):
                wrong_type(f"{param}.{at}", "a list of tokens")


def read_prompt(payload: JsonObject) -> Conversation:
    """The prompt as the only message, of the user. Raises `InvalidRequest`, with `unsupported_parameter` for what a chat
    can't do.
    """
    prompt = payload.get("prompt")
    if isinstance(prompt, list):
        if len(prompt) != 1:
            unsupported("prompt", "it continues one text at a time, and reads no tokens.")
        prompt = prompt[0]
    if not isinstance(prompt, str):
        unsupported("prompt", "it reads texts, not tokens.")
    for name in ("suffix", "echo", "best_of", "logprobs"):
        value = payload.get(name)
        if value is not None and value is not False and not (name == "best_of" and value == 1):
            unsupported(name, "it is asked as a chat, which has nothing of the kind.")
    further: JsonObject = {name: value for name, value in payload.items() if name not in _READ and value is not None}
    further.update(stream_options_of(payload))
    return Conversation(
        messages=(Message(Role.USER, (Text(prompt),)),),
        max_tokens=integer_or_none(payload, "max_tokens"),
        temperature=number_or_none(payload, "temperature"),
        top_p=number_or_none(payload, "top_p"),
        top_k=integer_or_none(payload, "top_k"),
        stop=stop_of(payload),
        seed=integer_or_none(payload, "seed"),
        presence_penalty=number_or_none(payload, "presence_penalty"),
        frequency_penalty=number_or_none(payload, "frequency_penalty"),
        n=integer_or_none(payload, "n"),
        user=text_or_none(payload, "user"),
        stream=flag_or_none(payload, "stream") or False,
        further=further,
    )
