"""Where a request goes: which of a model's targets may take it, in which order, and what stands in for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from secrets import SystemRandom
from typing import NamedTuple

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, InvalidRequest, NotFound, ProxyError, Unavailable
from secure_llm_proxy.routing.attempts import Attempts, Chance
from secure_llm_proxy.routing.circuits import Circuits
from secure_llm_proxy.routing.definitions import DEMO
from secure_llm_proxy.routing.model_lists import RETRY_S, ModelLists
from secure_llm_proxy.routing.model_table import ModelTable, lists_itself
from secure_llm_proxy.routing.models import ModelDefinition, ModelRoute, Strategy, carries
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Attempt, ChatRequest, Failure, Route, Target
from secure_llm_proxy.vocabulary.inbound import Tags
from secure_llm_proxy.vocabulary.providers import Capability, ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import OPERATION_OF, Operation, WireFormat, spoken

# Clients choose names of models and tags: what is remembered of them is bounded.
_PLANS_KEPT = 4096


class Hurdle(IntEnum):
    """What a target fails at, in the order in which it is looked at."""

    PROVIDER = 0
    FORMAT = 1
    NEEDS = 2
    TAGS = 3


class Wish(NamedTuple):
    """What a request wants of the place that answers it."""

    format: WireFormat = WireFormat.OPENAI_CHAT
    needs: frozenset[str] = frozenset()
    tags: Tags = ()


class Verdict(NamedTuple):
    """Why a target is passed over, for the operator; `hurdle` None: it is not."""

    route: ModelRoute
    hurdle: Hurdle | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known beforehand. `route` holds all targets in the operator's order; `weights` beside them."""

    route: Route
    strategy: Strategy
    weights: tuple[int, ...]

    @property
    def is_fixed(self) -> bool:
        return self.strategy is Strategy.ORDERED or len(self.weights) == 1


class Routing:
    """Plans routes from memory, chooses what follows a failure, and knows which targets are busy or keep failing.

    One worker's; any greenlet may use it. `list_models` asks a provider for its own list.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        list_models: Callable[[str], tuple[str, ...]],
        clock: Clock,
        *,
        chance: Chance | None = None,
        on_failure: Callable[[str, FailureKind], None] | None = None,
        on_attempt: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._chance = chance or SystemRandom()
        self._on_failure = on_failure or _count_nothing
        self._on_attempt = on_attempt or _count_nothing
        self.circuits = Circuits(settings, clock)
        self._attempts = Attempts(settings, self.circuits.lets, self._chance)
        self._earn = self._attempts.budget.earn
        self._monotonic_s = clock.monotonic_s
        self._lists = ModelLists(settings.models_cache_s, list_models, clock)
        self._explicit: tuple[ModelDefinition, ...] = ()
        self._providers: Mapping[str, ProviderDefinition] = {}
        self._default = settings.default_model
        self._table = ModelTable((), {}, {})
        self._table_version = -1
        self._plans: dict[tuple[str | None, WireFormat, frozenset[str], Tags], _Plan] = {}
        self._busy: dict[tuple[str, str], int] = {}

    def configure(self, providers: Collection[ProviderDefinition], models: Collection[ModelDefinition] = ()) -> None:
        """Take these from now on. What is known of providers that did not change is kept."""
        before, self._providers = self._providers, {definition.name: definition for definition in providers}
        self._explicit = tuple(models)
        # The demo knows its own models only.
        self._default = None if DEMO in self._providers else self._settings.default_model
        asked = () if self._explicit else lists_itself(providers)
        self._lists.watch(asked, changed=[name for name in asked if before.get(name) != self._providers[name]])

    def listed(self) -> tuple[str, ...]:
        """Every model on offer: those of the file with their aliases, then the providers'. Raises `Unavailable`."""
        self._look()
        if not self._table.listed and not self._table.is_open_ended:
            raise self._no_models()
        return self._table.listed

    def plan(self, request: ChatRequest, tags: Tags) -> Route:
        """The route of a request for its model; None takes DEFAULT_MODEL, else the first listed.

        Raises `NotFound`, `InvalidRequest(no_route)` when nothing may or can take it, `Unavailable` when whatever could keeps
        failing, with the seconds until somebody may try.
        """
        self._earn()
        if self._monotonic_s() >= self._lists.due_s or self._table_version != self._lists.version:
            self._look()
        known = request.model, request.format, request.needs, tags
        plan = self._plans.get(known)
        if plan is None:
            plan = self._work_out(request.model, Wish(request.format, request.needs, tags))
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            self._plans[known] = plan
        if plan.is_fixed and not self.circuits.any_open:
            return plan.route
        return self._choose(plan)

    def next_attempt(self, route: Route, failures: Sequence[Failure]) -> Attempt | None:
        """What is tried after the last of these; None when it stands."""
        return self._attempts.after(route, failures)

    def began(self, target: Target) -> None:
        """An exchange with it begins."""
        key = target.provider, target.model
        self._busy[key] = self._busy.get(key, 0) + 1
        self._on_attempt(target.provider)
        if self.circuits.any_open:
            self.circuits.began(target, self._settings.total_timeout_s)

    def ended(self, target: Target) -> None:
        """It is over."""
        key = target.provider, target.model
        running = self._busy.get(key, 0) - 1
        if running > 0:
            self._busy[key] = running
        else:
            self._busy.pop(key, None)
        self.circuits.released(target)

    def answered(self, target: Target) -> None:
        """It gave an answer."""
        self.circuits.answered(target)

    def failed(self, target: Target, kind: FailureKind) -> None:
        """It failed to."""
        self._on_failure(target.provider, kind)
        self.circuits.failed(target, kind)

    def model(self, name: str | None) -> ModelDefinition:
        """The model that is meant. Raises `NotFound`, or `Unavailable` while a provider that may have it tells no list."""
        self._look()
        if name is None:
            name = self._default or next(iter(self._table.listed), None)
            if name is None:
                raise self._no_models()
        found = self._table.get(name)
        if found is not None:
            return found
        if None in self._lists.told().values() or not self._table.listed:
            raise self._no_models()
        shown = name[:64].encode("unicode_escape").decode("ascii")
        raise NotFound(
            f"The model `{shown}` does not exist or you do not have access to it.",
            code=ErrorCode.MODEL_NOT_FOUND,
            param="model",
        )

    def names_of(self, model: ModelDefinition) -> tuple[str, ...]:
        """All that it is called."""
        return self._table.names_of(model)

    def verdicts(
        self, model: ModelDefinition, wish: Wish, *, instead_of: ModelDefinition | None = None
    ) -> list[Verdict]:
        """Of each of its routes: may it take a request like this? A fallback obeys the tags of the model whose place it takes."""
        return [self._judge(model, route, wish, instead_of) for route in model.routes]

    def trouble(self) -> str | None:
        """A sentence for the operator while something is left alone."""
        views = self.circuits.views()
        if not views:
            return None
        return f"Left alone because they kept failing: {', '.join(f'{view.provider}/{view.model}' for view in views)}."

    def untold(self) -> tuple[str, ...]:
        """Providers that were asked for their models and never told."""
        return tuple(name for name, models in self._lists.told().items() if models is None)

    def _look(self) -> None:
        if self._monotonic_s() >= self._lists.due_s:
            self._lists.refresh()
        if self._table_version != self._lists.version:
            self._table_version = self._lists.version
            self._table = ModelTable(self._explicit, self._providers, self._lists.told())
            self._plans.clear()

    def _no_models(self) -> ProxyError:
        if not self._providers:
            return Unavailable(
                "No provider is configured.",
                code=ErrorCode.PROVIDER_UNAVAILABLE,
                detail="no provider is configured: set LLM_API_URL or a provider's key",
                retry_after_s=int(RETRY_S),
            )
        return Unavailable(
            "The provider's list of models is unavailable.",
            code=ErrorCode.MODELS_UNAVAILABLE,
            detail="a provider does not list its models; set LLM_MODELS, or name them in MODELS_FILE",
            retry_after_s=int(RETRY_S),
        )

    def _judge(
        self, model: ModelDefinition, route: ModelRoute, wish: Wish, instead_of: ModelDefinition | None
    ) -> Verdict:
        definition = self._providers.get(route.provider)
        if definition is None:
            return Verdict(route, Hurdle.PROVIDER, "the provider is not configured")
        kind = provider_kinds()[definition.kind]
        offered = definition.formats if definition.formats is not None else kind.formats
        # Tokens that a provider does not count are estimated in its place.
        counts = OPERATION_OF[wish.format] is Operation.COUNT_TOKENS
        if spoken(offered, wish.format) is None and not counts:
            return Verdict(route, Hurdle.FORMAT, f"{kind.title} has nothing of the kind of {wish.format.value}")
        has = frozenset(Capability) - kind.lacks if model.capabilities is None else model.capabilities
        if lacking := wish.needs - has:
            return Verdict(route, Hurdle.NEEDS, f"it lacks {', '.join(sorted(lacking))}")
        for asking in (model, instead_of):
            if asking is not None and not asking.allows(definition.tags):
                return Verdict(
                    route, Hurdle.TAGS, f"{asking.name} requires or forbids tags, and its provider's are others"
                )
        if not carries(definition.tags, wish.tags):
            return Verdict(route, Hurdle.TAGS, "its provider has not the tags that the client asks for")
        return Verdict(route)

    def _targets(
        self, model: ModelDefinition, wish: Wish, instead_of: ModelDefinition | None = None
    ) -> tuple[Target, ...]:
        served_as = model.name if instead_of is not None else ""
        return tuple(
            Target(verdict.route.provider, verdict.route.model, served_as, model.max_output_tokens)
            for verdict in self.verdicts(model, wish, instead_of=instead_of)
            if verdict.hurdle is None
        )

    def _work_out(self, name: str | None, wish: Wish) -> _Plan:
        model = self.model(name)
        verdicts = self.verdicts(model, wish)
        fit = [verdict.route for verdict in verdicts if verdict.hurdle is None]
        if not fit:
            raise _no_route(model, wish, verdicts)
        fallbacks: dict[FailureKind | None, tuple[Target, ...]] = {}
        for kind, names in (
            (None, model.fallbacks),
            (FailureKind.CONTEXT_LENGTH, model.context_fallbacks),
            (FailureKind.CONTENT_POLICY, model.content_policy_fallbacks),
        ):
            if names:
                fallbacks[kind] = tuple(
                    target
                    for other in names
                    if (fallback := self._table.get(other)) is not None
                    for target in self._targets(fallback, wish, instead_of=model)
                )
        route = Route(model.name, self._targets(model, wish), fallbacks)
        return _Plan(route, model.strategy, tuple(each.weight for each in fit))

    def _choose(self, plan: _Plan) -> Route:
        """The targets that may be asked now, in the order of the strategy; else the fallbacks; else nobody."""
        route, lets = plan.route, self.circuits.lets
        ordered = self._in_order(plan)
        first = next((at for at, target in enumerate(ordered) if lets(target)), None)
        if first is not None:
            # The others are looked at when their turn comes, so that none of their circuits is claimed for nothing.
            return Route(route.model, tuple(ordered[first:] + ordered[:first]), route.fallbacks)
        instead = route.fallbacks.get(None, ())
        first = next((at for at, target in enumerate(instead) if lets(target)), None)
        if first is not None:
            return Route(route.model, instead[first:], route.fallbacks)
        wait_s = min(self.circuits.opens_s(target) for target in (*ordered, *instead))
        raise Unavailable(
            "The provider of this model is unavailable.",
            code=ErrorCode.PROVIDER_UNAVAILABLE,
            detail="every circuit is open",
            retry_after_s=max(1, math.ceil(wait_s)),
        )

    def _in_order(self, plan: _Plan) -> list[Target]:
        targets = list(plan.route.targets)
        if plan.is_fixed:
            return targets
        if plan.strategy is Strategy.WEIGHTED:
            # Each draws a number whose largest is its own in proportion to its weight (Efraimidis and Spirakis, 2006).
            drawn = [self._chance.random() ** (1 / weight) for weight in plan.weights]
        else:
            # Equally busy ones in turn, by chance.
            drawn = [
                -self._busy.get((target.provider, target.model), 0) / weight - self._chance.random() * 1e-6
                for target, weight in zip(targets, plan.weights, strict=True)
            ]
        return [target for _, target in sorted(zip(drawn, targets, strict=True), key=_drawn, reverse=True)]


def _drawn(pair: tuple[float, Target]) -> float:
    return pair[0]


def _no_route(model: ModelDefinition, wish: Wish, verdicts: Sequence[Verdict]) -> ProxyError:
    """What the client may learn: at what the one that came farthest failed."""
    match max(verdict.hurdle for verdict in verdicts if verdict.hurdle is not None):
        case Hurdle.PROVIDER:
            return Unavailable(
                "The provider of this model is not configured.",
                code=ErrorCode.PROVIDER_UNAVAILABLE,
                detail=f"no provider of {model.name} is configured",
                retry_after_s=int(RETRY_S),
            )
        case Hurdle.FORMAT:
            why, param = "offers anything of this kind", "model"
        case Hurdle.NEEDS:
            why, param = f"offers all that this request needs ({', '.join(sorted(wish.needs))})", "model"
        case _:
            why, param = "has the tags that are asked for", "X-SLP-Require" if wish.tags else "model"
    return InvalidRequest(f"No provider behind this model {why}.", code=ErrorCode.NO_ROUTE, param=param)


def _count_nothing(*_facts: object) -> None:
    """Nobody counts."""
