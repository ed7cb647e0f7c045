"""Checks that several doors share when they read a request's JSON. Unknown parameters pass; known ones have types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)
from typing_extensions import TypeAliasType

from secure_llm_proxy.foundation.errors import ErrorCode, InvalidRequest

Number = StrictInt | StrictFloat
ModelName = Annotated[StrictStr, Field(min_length=1, max_length=256)]


# An alias of its own, because Python 3.11 cannot hash FailFast inside a union.
Parts = TypeAliasType("Parts", Annotated[list[dict[str, Any]], FailFast()])


class Message(BaseModel):
    """One message; its content is text, a list of parts, or null beside tool calls."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    content: StrictStr | Parts | None = None
    name: StrictStr | None = None


class Parameters(BaseModel):
    """Parameters whose types the OpenAI API reference (2026-11) fixes; the provider judges their ranges."""

    model_config = ConfigDict(extra="allow")

    model: ModelName | None = None
    stream: StrictBool | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    user: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    stream_options: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None


def require_at_most(messages: object, messages_max: int) -> None:
    """Before anything is made of them: a wrong item costs a hundred times its size in errors."""
    if isinstance(messages, list) and len(messages) > messages_max:
        raise InvalidRequest(
            f"Too many messages: {len(messages)}, at most {messages_max}.",
            code=ErrorCode.INVALID_VALUE,
            param="messages",
        )


def invalid(error: ValidationError) -> InvalidRequest:
    """The first thing wrong, in words that name the parameter and never quote its value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or None
    shown = shown_path(path) if path else None
    if first["type"] == "missing":
        return InvalidRequest(f"You must provide `{shown}`.", code=ErrorCode.MISSING_PARAMETER, param=shown)
    wrong_type = first["type"].endswith("_type") or first["type"] in {"model_attributes_type", "none_required"}
    code = ErrorCode.INVALID_TYPE if wrong_type else ErrorCode.INVALID_VALUE
    return InvalidRequest(f"Invalid `{shown}`: {first['msg'][:1].lower()}{first['msg'][1:]}.", code=code, param=shown)


def shown_path(path: str) -> str:
    """The path of a parameter as an error may name it: a client may have made its names up."""
    return path[:64].encode("unicode_escape").decode("ascii")


def _is_branch(part: object) -> bool:
    """Pydantic names the branches of a union in the path (`strict-str`, `list[dict[…]]`); a client's parameters don't."""
    return isinstance(part, str) and (
        part in {"str", "int", "float"} or "[" in part or part.startswith(("strict", "constrained"))
    )
