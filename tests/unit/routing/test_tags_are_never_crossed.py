"""Whatever is configured, asked for and failing: no target lacks a tag that anybody demanded, or has one that is forbidden."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.foundation.errors import FailureKind, ProxyError
from secure_llm_proxy.routing import ModelDefinition, Routing
from secure_llm_proxy.routing.models import ModelRoute, Strategy
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import ChatRequest, Failure, Target
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from tests.support.house import ManualClock

NAMES, VALUES = ("region", "data"), ("a", "b", "c")
PROVIDERS = ("p0", "p1", "p2", "p3")
MODELS = ("m0", "m1", "m2")

tags = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES))
rules = st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.sampled_from(VALUES), min_size=1, max_size=2))
others = st.lists(st.sampled_from(MODELS), max_size=2, unique=True).map(tuple)


@st.composite
def definitions(draw: st.DrawFn, name: str) -> ModelDefinition:
    places = draw(st.lists(st.sampled_from(PROVIDERS), min_size=1, max_size=3))
    return ModelDefinition(
        name=name,
        routes=tuple(ModelRoute(place, name) for place in places),
        strategy=draw(st.sampled_from(Strategy)),
        fallbacks=draw(others),
        context_fallbacks=draw(others),
        content_policy_fallbacks=draw(others),
        require=draw(rules),
        forbid=draw(rules),
    )


@given(
    tagged=st.fixed_dictionaries(dict.fromkeys(PROVIDERS, tags)),
    models=st.tuples(*(definitions(name) for name in MODELS)),
    asked=tags,
    kinds=st.lists(st.sampled_from(FailureKind), min_size=1, max_size=8),
    broken=st.lists(st.tuples(st.sampled_from(PROVIDERS), st.sampled_from(MODELS)), max_size=6),
)
def test_no_failure_carries_a_request_across_a_tag(
    tagged: Mapping[str, Mapping[str, str]],
    models: tuple[ModelDefinition, ...],
    asked: Mapping[str, str],
    kinds: list[FailureKind],
    broken: list[tuple[str, str]],
) -> None:
    routing = Routing(UpstreamSettings(circuit_failures=1), lambda _: (), ManualClock(), chance=Random(1))
    routing.configure(
        [ProviderDefinition(name, "openai_compatible", "https://x.invalid", tags=tagged[name]) for name in PROVIDERS],
        models,
    )
    for place in broken:
        routing.failed(Target(*place), FailureKind.TIMEOUT)
    by_name = {model.name: model for model in models}

    for model in models:
        try:
            route = routing.plan(ChatRequest(model.name, stream=False, payload={}), tuple(asked.items()))
        except ProxyError:
            continue
        tried = [route.targets[0]]
        failures = [Failure(tried[0], kinds[0])]
        for kind in kinds[1:]:
            attempt = routing.next_attempt(route, failures)
            if attempt is None:
                break
            tried.append(attempt.target)
            failures.append(Failure(attempt.target, kind))

        for target in [*tried, *route.targets, *(one for chain in route.fallbacks.values() for one in chain)]:
            has = tagged[target.provider]
            assert asked.items() <= has.items()
            for demanding in {model.name, target.served_as or model.name}:
                for name, values in by_name[demanding].require.items():
                    assert has.get(name) in values
                for name, values in by_name[demanding].forbid.items():
                    assert has.get(name) not in values
