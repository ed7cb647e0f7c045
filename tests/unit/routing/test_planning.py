"""Where requests go: names, strategies, what a request needs, tags, circuits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from random import Random

import pytest

from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, InvalidRequest, NotFound, Unavailable
from secure_llm_proxy.routing import ModelDefinition, Routing
from secure_llm_proxy.routing.models import ModelRoute, Strategy
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import ChatRequest, Failure, Route, Target
from secure_llm_proxy.vocabulary.inbound import Tags
from secure_llm_proxy.vocabulary.providers import Capability, ProviderDefinition
from secure_llm_proxy.vocabulary.wire_formats import WireFormat
from tests.support.house import ManualClock


def provider(
    name: str, *models: str, kind: str = "openai_compatible", tags: Mapping[str, str] | None = None
) -> ProviderDefinition:
    return ProviderDefinition(name, kind, "https://x.invalid", models=models, tags=tags or {})


def model(name: str, *routes: tuple[str, str] | tuple[str, str, int], **fields: object) -> ModelDefinition:
    made: dict[str, object] = {"name": name, "routes": tuple(ModelRoute(*route) for route in routes), **fields}
    return ModelDefinition(**made)  # type: ignore[arg-type]  # a maker: the fields' types are the definition's own


def routing(
    *providers: ProviderDefinition,
    models: tuple[ModelDefinition, ...] = (),
    lists: Mapping[str, tuple[str, ...]] | None = None,
    clock: ManualClock | None = None,
    **settings: object,
) -> Routing:
    told: Callable[[str], tuple[str, ...]] = lambda name: (lists or {})[name]  # noqa: E731  one line says it all
    made = Routing(UpstreamSettings(**settings), told, clock or ManualClock(), chance=Random(7))  # type: ignore[arg-type]  # as above
    made.configure(providers, models)
    return made


def asking(
    name: str | None, *needs: str, format_: WireFormat = WireFormat.OPENAI_CHAT, stream: bool = False
) -> ChatRequest:
    return ChatRequest(name, stream, {}, format_, needs=frozenset(needs))


def places(route: Route) -> list[str]:
    return [f"{target.provider}/{target.model}" for target in route.targets]


def plan(rooms: Routing, name: str | None, *needs: str, tags: Tags = ()) -> list[str]:
    return places(rooms.plan(asking(name, *needs), tags))


def break_down(rooms: Routing, name: str, model_name: str = "m", times: int = 10) -> None:
    for _ in range(times):
        rooms.failed(Target(name, model_name), FailureKind.UNREACHABLE)


# --- names ------------------------------------------------------------------------------------------------------------


def test_of_models_that_several_providers_list_the_first_keeps_the_plain_name() -> None:
    rooms = routing(provider("a"), provider("b"), lists={"a": ("x", "y"), "b": ("y", "z")})

    assert rooms.listed() == ("x", "y", "b/y", "z")
    assert [plan(rooms, name) for name in ("y", "a/y", "b/y", "z", "b/z")] == [
        ["a/y"],
        ["a/y"],
        ["b/y"],
        ["b/z"],
        ["b/z"],
    ]
    assert rooms.plan(asking("a/y"), ()).model == "y"
    assert rooms.plan(asking("b/y"), ()).model == "b/y"


def test_a_plain_name_never_hides_another_providers_full_one() -> None:
    rooms = routing(provider("broker"), provider("openai"), lists={"broker": ("openai/gpt", "own"), "openai": ("gpt",)})

    assert plan(rooms, "openai/gpt") == ["openai/gpt"]
    assert plan(rooms, "broker/openai/gpt") == ["broker/openai/gpt"]
    assert rooms.listed() == ("broker/openai/gpt", "own", "gpt")


def test_models_of_the_file_are_all_that_is_on_offer_but_what_definitions_name() -> None:
    smart = model("smart", ("a", "big"), aliases=("gpt-4", "default"))
    rooms = routing(provider("a"), provider("b", "named"), models=(smart,), lists={"a": ("big", "secret")})

    assert rooms.listed() == ("smart", "gpt-4", "default", "named")
    assert plan(rooms, "gpt-4") == ["a/big"]
    assert rooms.plan(asking("gpt-4"), ()).model == "smart"
    assert plan(rooms, "b/named") == ["b/named"]
    for name in ("big", "a/big", "secret"):
        with pytest.raises(NotFound):
            plan(rooms, name)


def test_a_provider_that_can_list_nothing_takes_any_name_after_its_own() -> None:
    rooms = routing(provider("azure", kind="azure"), provider("a"), lists={"a": ("x",)})

    assert plan(rooms, "azure/my-deployment") == ["azure/my-deployment"]
    assert rooms.listed() == ("x",)
    for name in ("azure/", "azure", "my-deployment", "azure/a b", "other/x"):
        with pytest.raises(NotFound):
            plan(rooms, name)


def test_while_a_provider_told_no_list_an_unknown_model_is_not_said_not_to_exist() -> None:
    def told(name: str) -> tuple[str, ...]:
        if name == "b":
            raise Unavailable("x")
        return ("x",)

    rooms = Routing(UpstreamSettings(), told, ManualClock())
    rooms.configure([provider("a"), provider("b")])

    assert plan(rooms, "x") == ["a/x"]
    with pytest.raises(Unavailable) as refused:
        plan(rooms, "y")
    assert refused.value.code is ErrorCode.MODELS_UNAVAILABLE
    assert rooms.untold() == ("b",)


def test_without_any_provider_the_answer_says_so() -> None:
    with pytest.raises(Unavailable) as refused:
        plan(routing(), "x")

    assert refused.value.code is ErrorCode.PROVIDER_UNAVAILABLE


def test_the_default_may_be_an_alias_of_any_provider() -> None:
    rooms = routing(provider("a"), models=(model("m", ("a", "x"), aliases=("usual",)),), default_model="usual")

    assert rooms.plan(asking(None), ()).model == "m"


def test_what_changes_in_the_configuration_counts_from_the_next_request_on() -> None:
    rooms = routing(provider("a", "x"), lists={"b": ("y",)})
    assert plan(rooms, "x") == ["a/x"]

    rooms.configure([provider("b")])

    assert plan(rooms, "y") == ["b/y"]
    with pytest.raises(NotFound):
        plan(rooms, "x")


# --- strategies -------------------------------------------------------------------------------------------------------


def test_routes_stand_in_the_operators_order() -> None:
    rooms = routing(provider("a"), provider("b"), models=(model("m", ("b", "x"), ("a", "y")),))

    assert plan(rooms, "m") == ["b/x", "a/y"]


def test_weighted_routes_come_first_in_proportion_to_their_weights() -> None:
    weighted = model("m", ("a", "x", 1), ("b", "x", 3), strategy=Strategy.WEIGHTED)
    rooms = routing(provider("a"), provider("b"), models=(weighted,))

    plans = [plan(rooms, "m") for _ in range(4000)]

    firsts = Counter(each[0] for each in plans)
    assert all(sorted(each) == ["a/x", "b/x"] for each in plans)
    assert 0.70 < firsts["b/x"] / 4000 < 0.80


def test_the_least_busy_route_comes_first_for_its_weight() -> None:
    balanced = model("m", ("a", "x", 1), ("b", "x", 2), strategy=Strategy.LEAST_BUSY)
    rooms = routing(provider("a"), provider("b"), models=(balanced,))
    sent: list[Target] = []

    for _ in range(9):
        sent.append(rooms.plan(asking("m"), ()).targets[0])
        rooms.began(sent[-1])

    assert Counter(target.provider for target in sent) == {"a": 3, "b": 6}
    for target in [each for each in sent if each.provider == "a"]:
        rooms.ended(target)
    assert plan(rooms, "m")[0] == "a/x"


# --- what a request needs ---------------------------------------------------------------------------------------------


def test_targets_that_lack_what_a_request_needs_are_passed_over() -> None:
    rooms = routing(provider("groq", kind="groq"), provider("own"), models=(model("m", ("groq", "x"), ("own", "y")),))

    assert plan(rooms, "m") == ["groq/x", "own/y"]
    assert plan(rooms, "m", "logprobs") == ["own/y"]


def test_the_operators_word_about_capabilities_counts() -> None:
    rooms = routing(provider("own"), models=(model("m", ("own", "x"), capabilities=frozenset({Capability.TOOLS})),))

    assert plan(rooms, "m", "tools") == ["own/x"]
    with pytest.raises(InvalidRequest) as refused:
        plan(rooms, "m", "tools", "images")
    assert (refused.value.code, refused.value.param) == (ErrorCode.NO_ROUTE, "model")


def test_a_provider_that_has_nothing_of_the_kind_is_passed_over() -> None:
    rooms = routing(provider("anthropic", kind="anthropic"), models=(model("m", ("anthropic", "claude")),))

    assert places(rooms.plan(asking("m", format_=WireFormat.OPENAI_RESPONSES), ())) == ["anthropic/claude"]
    with pytest.raises(InvalidRequest) as refused:
        rooms.plan(asking("m", format_=WireFormat.OPENAI_EMBEDDINGS), ())
    assert refused.value.code is ErrorCode.NO_ROUTE


def test_tokens_are_counted_for_any_model_since_the_proxy_estimates_what_its_provider_does_not_count() -> None:
    rooms = routing(provider("a", "x"), provider("c", "y", kind="cohere"))

    for name in ("x", "y"):
        assert len(rooms.plan(asking(name, format_=WireFormat.ANTHROPIC_COUNT_TOKENS), ()).targets) == 1


def test_a_route_to_a_provider_that_is_not_configured_is_passed_over() -> None:
    rooms = routing(provider("own"), models=(model("m", ("gone", "x"), ("own", "y")), model("n", ("gone", "x"))))

    assert plan(rooms, "m") == ["own/y"]
    with pytest.raises(Unavailable) as refused:
        plan(rooms, "n")
    assert refused.value.code is ErrorCode.PROVIDER_UNAVAILABLE


def test_the_most_that_a_model_answers_with_goes_along() -> None:
    rooms = routing(provider("own"), models=(model("m", ("own", "x"), max_output_tokens=8192),))

    assert rooms.plan(asking("m"), ()).targets == (Target("own", "x", max_output_tokens=8192),)


# --- tags -------------------------------------------------------------------------------------------------------------

EU = provider("eu", tags={"region": "eu", "data": "restricted"})
US = provider("us", tags={"region": "us"})


def test_the_clients_tags_choose_among_the_routes() -> None:
    rooms = routing(EU, US, models=(model("m", ("us", "x"), ("eu", "x")),))

    assert plan(rooms, "m", tags=(("region", "eu"),)) == ["eu/x"]
    assert plan(rooms, "m", tags=(("region", "eu"), ("data", "restricted"))) == ["eu/x"]
    with pytest.raises(InvalidRequest) as refused:
        plan(rooms, "m", tags=(("region", "us"), ("data", "restricted")))
    assert (refused.value.code, refused.value.param) == (ErrorCode.NO_ROUTE, "X-SLP-Require")


@pytest.mark.parametrize(
    "rules", [{"require": {"region": frozenset({"eu"})}}, {"forbid": {"region": frozenset({"us", "cn"})}}]
)
def test_a_fallback_never_crosses_what_the_model_requires_or_forbids(rules: dict[str, object]) -> None:
    strict = model(
        "m", ("eu", "x"), fallbacks=("n",), context_fallbacks=("n",), content_policy_fallbacks=("n",), **rules
    )
    loose = model("n", ("us", "y"), ("eu", "z"))
    rooms = routing(EU, US, models=(strict, loose))

    route = rooms.plan(asking("m"), ())

    for kind in (None, FailureKind.CONTEXT_LENGTH, FailureKind.CONTENT_POLICY):
        assert route.fallbacks[kind] == (Target("eu", "z", served_as="n"),)
    break_down(rooms, "eu", "x")
    assert places(rooms.plan(asking("m"), ())) == ["eu/z"]
    break_down(rooms, "eu", "z")
    with pytest.raises(Unavailable):
        rooms.plan(asking("m"), ())


def test_a_fallback_has_the_tags_that_the_client_asks_for() -> None:
    rooms = routing(EU, US, models=(model("m", ("eu", "x"), fallbacks=("n",)), model("n", ("us", "y"))))

    route = rooms.plan(asking("m"), (("region", "eu"),))

    assert (places(route), route.fallbacks[None]) == (["eu/x"], ())


# --- circuits ---------------------------------------------------------------------------------------------------------


def test_a_target_whose_circuit_is_open_is_passed_over_until_its_time_is_over() -> None:
    clock = ManualClock()
    rooms = routing(provider("a"), provider("b"), models=(model("m", ("a", "m"), ("b", "m")),), clock=clock)
    break_down(rooms, "a")

    assert plan(rooms, "m") == ["b/m", "a/m"]

    clock.advance(15.1)
    assert plan(rooms, "m")[0] == "a/m", "one request tries"
    assert plan(rooms, "m")[0] == "b/m", "and only one"
    rooms.answered(Target("a", "m"))
    assert plan(rooms, "m") == ["a/m", "b/m"]


def test_when_everything_is_left_alone_the_answer_says_when_to_come_back() -> None:
    clock = ManualClock()
    rooms = routing(provider("a", "m"), clock=clock)
    break_down(rooms, "a")
    clock.advance(4)

    with pytest.raises(Unavailable) as refused:
        plan(rooms, "m")

    assert (refused.value.status, refused.value.code) == (503, ErrorCode.PROVIDER_UNAVAILABLE)
    assert refused.value.retry_after_s == 11


def test_another_model_of_the_same_provider_is_not_left_alone_with_it() -> None:
    rooms = routing(provider("a", "m", "n"))
    break_down(rooms, "a")

    assert plan(rooms, "n") == ["a/n"]


def test_a_fallback_answers_at_once_while_the_model_is_left_alone() -> None:
    rooms = routing(
        provider("a"), provider("b"), models=(model("m", ("a", "m"), fallbacks=("n",)), model("n", ("b", "n")))
    )
    break_down(rooms, "a")

    route = rooms.plan(asking("m"), ())

    assert route.model == "m"
    assert route.targets == (Target("b", "n", served_as="n"),)


def test_attempts_and_failures_are_told_by_provider() -> None:
    attempts: list[str] = []
    failures: list[tuple[str, FailureKind]] = []
    rooms = Routing(
        UpstreamSettings(),
        lambda _: (),
        ManualClock(),
        on_attempt=attempts.append,
        on_failure=lambda name, kind: failures.append((name, kind)),
    )

    rooms.began(Target("a", "m"))
    rooms.failed(Target("a", "m"), FailureKind.TIMEOUT)

    assert attempts == ["a"]
    assert failures == [("a", FailureKind.TIMEOUT)]


def test_a_failure_leads_on_to_the_next_route() -> None:
    rooms = routing(provider("a"), provider("b"), models=(model("m", ("a", "m"), ("b", "m")),))
    route = rooms.plan(asking("m"), ())

    further = rooms.next_attempt(route, [Failure(route.targets[0], FailureKind.TIMEOUT)])

    assert further is not None
    assert (further.target, further.pause_s) == (Target("b", "m"), 0.0)
