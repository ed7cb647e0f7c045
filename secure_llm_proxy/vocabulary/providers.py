"""Providers: what is known of each kind (`providers.toml`), and what one configured provider is.

Source: the vendors' API references, read 2026-11.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import SecretStr, TypeAdapter

from secure_llm_proxy.vocabulary.wire_formats import WireFormat


class Capability(StrEnum):
    """What a request may need and not every model has."""

    TOOLS = "tools"
    JSON_SCHEMA = "json_schema"
    IMAGES = "images"
    FILES = "files"
    AUDIO = "audio"
    LOGPROBS = "logprobs"
    SEVERAL_CHOICES = "several_choices"
    EMBEDDINGS = "embeddings"


class Limit(StrEnum):
    """Of what a request may hold only so many."""

    STOP_SEQUENCES = "stop_sequences"
    CHOICES = "choices"
    TOP_LOGPROBS = "top_logprobs"
    EMBEDDING_INPUTS = "embedding_inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKind:
    """The facts about all providers of one kind; `providers.toml` says what each field means."""

    name: str = ""
    title: str
    base_url: str | None = None
    key_variables: tuple[str, ...] = ()
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    headers: Mapping[str, str] = field(default_factory=dict)
    passes: frozenset[str] = frozenset()
    models: str | None = None
    models_shape: Literal["openai", "array", "gemini", "cohere"] = "openai"
    formats: Mapping[WireFormat, str]
    stream: Mapping[WireFormat, str] = field(default_factory=dict)
    usage: Literal["asked", "always", "never"] = "always"
    renames: Mapping[str, str] = field(default_factory=dict)
    drops: frozenset[str] = frozenset()
    lacks: frozenset[Capability] = frozenset()
    limits: Mapping[Limit, int] = field(default_factory=dict)
    original: bool = False
    adds: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    bound: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    roles: Mapping[str, str] = field(default_factory=dict)
    call_ids: Literal["any", "nine"] = "any"
    tool_choices: Mapping[str, str] = field(default_factory=dict)
    efforts: Mapping[str, str] = field(default_factory=dict)
    reasoning_budget: bool = False
    media: Literal["openai", "mistral"] = "openai"
    quirks: frozenset[str] = field(init=False, default=frozenset())
    """Parameters of OpenAI's formats that do not go to it as they come."""

    def __post_init__(self) -> None:
        quirks = {*self.drops, *self.renames}
        if self.tool_choices:
            quirks.add("tool_choice")
        if self.roles or self.call_ids != "any" or any(name.startswith("messages.") for name in self.drops):
            quirks.add("messages")
        object.__setattr__(self, "quirks", frozenset(quirks))


@cache
def provider_kinds() -> Mapping[str, ProviderKind]:
    """All kinds by name, read once from the file beside this one."""
    text = files(__package__).joinpath("providers.toml").read_text(encoding="utf-8")
    shape = TypeAdapter(ProviderKind)
    return {name: shape.validate_python({"name": name, **facts}) for name, facts in tomllib.loads(text).items()}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one exchange may take, in seconds; None: as the settings have it."""

    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class ProviderDefinition:
    """One configured provider. `name` is the operator's, unique; `base_url` has no `/` at its end.

    `keys` are used in turn, and one that is refused or limited rests. `query` goes behind `?` with every request (Azure's API
    version). `models` are the models on offer where the provider lists none, or fewer are wanted; empty: its own list.
    `formats` overrides the paths of its kind. `source` tells where it was configured: environment, file or database.
    """

    name: str
    kind: str
    base_url: str
    keys: tuple[SecretStr, ...] = ()
    query: str = ""
    models: tuple[str, ...] = ()
    patience: Patience = Patience()
    tags: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[WireFormat, str] | None = None
    usage_in_streams: bool = True
    source: Literal["environment", "file", "database"] = "environment"
