"""Every model on offer by every name that means it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from secure_llm_proxy.routing.models import ModelDefinition, implicit_model
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds

_MODEL_NAME = re.compile(r"[!-~]{1,256}")


class ModelTable:
    """On offer are the models of the file, and those that a provider's definition names; where the file has none, also all
    that the other providers list themselves.

    A model of the file and its aliases come first. Of models that providers list, the first provider's keeps the plain name,
    and `provider/model` means exactly that one. A provider that can list none takes any name after its own and a slash.
    """

    def __init__(
        self,
        explicit: Iterable[ModelDefinition],
        providers: Mapping[str, ProviderDefinition],
        told: Mapping[str, tuple[str, ...] | None],
    ) -> None:
        self._explicit = {model.name: model for model in explicit}
        self._by_name = dict(self._explicit)
        for model in self._explicit.values():
            self._by_name.update(dict.fromkeys(model.aliases, model))
        self._open_ended = frozenset(lists_nothing(providers.values())) if not self._explicit else frozenset()
        listed = list(self._by_name)
        offers = {
            name: models
            for name, definition in providers.items()
            if (models := definition.models or (() if self._explicit else told.get(name) or ()))
        }
        full = {f"{provider}/{model}" for provider, models in offers.items() for model in models}
        for provider, models in offers.items():
            for listed_as in models:
                own = f"{provider}/{listed_as}"
                # A plain name that looks like another provider's full one would not be reached by it.
                plain = listed_as if listed_as not in self._by_name and listed_as not in full else own
                made = implicit_model(plain, provider, listed_as)
                if plain not in self._by_name:
                    listed.append(plain)
                    self._by_name[plain] = made
                self._by_name.setdefault(own, made)
        self.listed = tuple(listed)

    def get(self, name: str) -> ModelDefinition | None:
        found = self._by_name.get(name)
        if found is None and self._open_ended:
            provider, slash, model = name.partition("/")
            if slash and provider in self._open_ended and _MODEL_NAME.fullmatch(model):
                return implicit_model(name, provider, model)
        return found

    def names_of(self, model: ModelDefinition) -> tuple[str, ...]:
        """All that it is called, its own name first."""
        others = (name for name, known in self._by_name.items() if known is model and name != model.name)
        return (model.name, *others)

    @property
    def is_open_ended(self) -> bool:
        return bool(self._open_ended)


def lists_nothing(providers: Iterable[ProviderDefinition]) -> Collection[str]:
    """Those that can't say which models they have, and whose definition does not either."""
    kinds = provider_kinds()
    return [one.name for one in providers if not one.models and kinds[one.kind].models is None]


def lists_itself(providers: Iterable[ProviderDefinition]) -> tuple[str, ...]:
    """Those whose own list is what they offer."""
    kinds = provider_kinds()
    return tuple(one.name for one in providers if not one.models and kinds[one.kind].models is not None)
