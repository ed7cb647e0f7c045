"""A model on offer as the operator has it: where it may go, and what stands in when that fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from secure_llm_proxy.vocabulary.providers import Capability, ProviderDefinition

TagRules = Mapping[str, frozenset[str]]
"""Names of tags with the values that are meant."""


class Strategy(StrEnum):
    """Which of a model's routes is tried first."""

    ORDERED = "ordered"
    """As they stand."""
    WEIGHTED = "weighted"
    """By chance, in proportion to their weights."""
    LEAST_BUSY = "least-busy"
    """The one with the fewest running requests of this worker, for its weight."""


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """A provider, and the model's name in its words."""

    provider: str
    model: str
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefinition:
    """One model by our name for it.

    `fallbacks` and their kin are names of other models. `capabilities` None: whatever a provider of the route's kind may
    have. A provider must have one of the values of each tag in `require`, and none of those in `forbid`.
    """

    name: str
    routes: tuple[ModelRoute, ...]
    aliases: tuple[str, ...] = ()
    strategy: Strategy = Strategy.ORDERED
    fallbacks: tuple[str, ...] = ()
    context_fallbacks: tuple[str, ...] = ()
    content_policy_fallbacks: tuple[str, ...] = ()
    capabilities: frozenset[Capability] | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    require: TagRules = field(default_factory=dict)
    forbid: TagRules = field(default_factory=dict)

    def allows(self, tags: Mapping[str, str]) -> bool:
        """True when a provider with these tags may answer for this model."""
        return all(tags.get(name) in values for name, values in self.require.items()) and not any(
            tags.get(name) in values for name, values in self.forbid.items()
        )


@dataclass(frozen=True, slots=True)
class ModelsFile:
    """What stands in the file. `stored_providers` are those of the database to which its routes may go."""

    providers: tuple[ProviderDefinition, ...] = ()
    models: tuple[ModelDefinition, ...] = ()
    stored_providers: frozenset[str] = frozenset()


def implicit_model(name: str, provider: str, model: str) -> ModelDefinition:
    """A model that a provider lists."""
    return ModelDefinition(name=name, routes=(ModelRoute(provider, model),))


def carries(tags: Mapping[str, str], asked: Iterable[tuple[str, str]]) -> bool:
    """True when the provider has every tag that the client asks for."""
    return all(tags.get(name) == value for name, value in asked)
