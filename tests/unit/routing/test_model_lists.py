"""Which models are on offer, for how long that is believed, and what happens while the provider does not tell."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from secure_llm_proxy.foundation.errors import (
    ErrorCode,
    NotFound,
    ProxyError,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from secure_llm_proxy.routing import Routing
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import ChatRequest
from secure_llm_proxy.vocabulary.providers import ProviderDefinition
from tests.support.house import LogCapture, ManualClock


def asking(model: str | None) -> ChatRequest:
    return ChatRequest(model, stream=False, payload={})


class Provider:
    """Tells the list it is given, or fails as it is told; counts how often it was asked."""

    def __init__(self, *models: str) -> None:
        self.models: tuple[str, ...] = models
        self.error: Exception | None = None
        self.asked = 0

    def __call__(self, name: str) -> tuple[str, ...]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.models


def directory(
    provider: Provider, clock: ManualClock, *, models: tuple[str, ...] = (), default: str | None = None
) -> Routing:
    """Routing with one provider."""
    made = Routing(UpstreamSettings(default_model=default, models_cache_s=300), provider, clock)
    made.configure([ProviderDefinition("the-provider", "openai_compatible", "https://invalid/v1", models=models)])
    return made


def test_the_operators_list_is_the_list_and_the_provider_is_never_asked() -> None:
    provider = Provider("other")
    models = directory(provider, ManualClock(), models=("small", "large"))

    assert models.listed() == ("small", "large")
    assert models.plan(asking("large"), ()).model == "large"
    assert models.plan(asking("large"), ()).targets[0].provider == "the-provider"
    assert provider.asked == 0


def test_the_providers_list_is_asked_once_and_kept_for_its_time() -> None:
    clock, provider = ManualClock(), Provider("a", "b")
    models = directory(provider, clock)

    for _ in range(5):
        assert models.listed() == ("a", "b")
    clock.advance(299.9)
    models.plan(asking("a"), ())
    assert provider.asked == 1

    provider.models = ("c",)
    clock.advance(0.2)

    assert models.listed() == ("c",)
    assert provider.asked == 2


@pytest.mark.parametrize("error", [UpstreamFailed("x"), UpstreamTimeout("x"), Unavailable("x")])
def test_a_provider_that_fails_leaves_the_last_list_in_force(error: ProxyError) -> None:
    clock, provider = ManualClock(), Provider("a")
    models = directory(provider, clock)
    models.listed()

    provider.error = error
    clock.advance(301)

    assert models.listed() == ("a",)
    assert models.plan(asking("a"), ()).model == "a"


def test_a_failing_provider_is_asked_again_after_a_pause_and_not_by_every_request() -> None:
    clock, provider = ManualClock(), Provider("a")
    models = directory(provider, clock)
    models.listed()
    provider.error = UpstreamFailed("x")
    clock.advance(301)
    for _ in range(10):
        models.listed()
    assert provider.asked == 2

    provider.error, provider.models = None, ("b",)
    clock.advance(5.1)

    assert models.listed() == ("b",)
    assert provider.asked == 3


def test_a_provider_that_offers_nothing_any_more_leaves_no_model_on_offer() -> None:
    clock, provider = ManualClock(), Provider("a")
    models = directory(provider, clock)
    models.listed()

    provider.models = ()
    clock.advance(301)

    with pytest.raises(Unavailable):
        models.listed()


def test_without_any_list_the_answer_is_503_with_the_advice_for_the_operator() -> None:
    clock, provider = ManualClock(), Provider()
    provider.error = UpstreamFailed("the provider's host is llm.internal")
    models = directory(provider, clock)

    for ask in (models.listed, lambda: models.plan(asking("a"), ()), lambda: models.plan(asking(None), ())):
        with pytest.raises(Unavailable) as refused:
            ask()
        assert refused.value.code is ErrorCode.MODELS_UNAVAILABLE
        assert (refused.value.status, refused.value.retry_after_s) == (503, 5)
        assert "LLM_MODELS" in (refused.value.detail or "")
        assert "llm.internal" not in refused.value.public
    assert provider.asked == 1


def test_a_failure_is_logged_by_its_code_and_not_by_its_words() -> None:
    provider = Provider()
    provider.error = UpstreamFailed("canary-5c1e", detail="connect")
    models = directory(provider, ManualClock())

    with LogCapture() as logs, pytest.raises(Unavailable):
        models.listed()

    (record,) = [record for record in logs.records if record.name.startswith("secure_llm_proxy.routing")]
    assert vars(record)["code"] == "upstream_error"
    assert "canary" not in str(vars(record))


def test_a_request_that_names_no_model_gets_the_default_else_the_first() -> None:
    clock = ManualClock()

    assert directory(Provider("a", "b"), clock).plan(asking(None), ()).model == "a"
    assert directory(Provider("a", "b"), clock, default="b").plan(asking(None), ()).model == "b"


@pytest.mark.parametrize("model", ["unknown", "", "A", "a ", " a", "a\n", "a/../b", "a\x00"])
def test_an_unknown_model_is_404_in_openais_words(model: str) -> None:
    with pytest.raises(NotFound) as refused:
        directory(Provider("a"), ManualClock()).plan(asking(model), ())

    assert (refused.value.status, refused.value.code, refused.value.param) == (404, ErrorCode.MODEL_NOT_FOUND, "model")
    assert "does not exist or you do not have access to it" in refused.value.public


@pytest.mark.parametrize(
    "model", ["\x1b[2J\x1b[31mowned", "a\r\nX-Injected: 1", "\x00", "\u2028", "\u202egnp", "\ud800", "m" * 100_000, "\x9b1m"],
    ids=ascii,
)  # fmt: skip
def test_a_hostile_name_is_not_echoed_raw(model: str) -> None:
    with pytest.raises(NotFound) as refused:
        directory(Provider("a"), ManualClock()).plan(asking(model), ())

    assert refused.value.public.isprintable()
    assert refused.value.public.isascii()
    assert len(refused.value.public) < 1000


def test_a_default_that_is_not_on_offer_is_refused_and_not_sent() -> None:
    with pytest.raises(NotFound):
        directory(Provider("a"), ManualClock(), default="gone").plan(asking(None), ())


def test_many_requests_at_once_ask_the_provider_once() -> None:
    asked: list[int] = []
    release = Event()

    def slow(name: str) -> tuple[str, ...]:
        asked.append(1)
        assert release.wait(30)
        return ("a",)

    models = Routing(UpstreamSettings(), slow, ManualClock())
    models.configure([ProviderDefinition("p", "openai_compatible", "https://invalid/v1")])
    waiting = [gevent.spawn(models.listed) for _ in range(20)]
    gevent.sleep(0)
    release.set()
    gevent.joinall(waiting, timeout=30, raise_error=True)

    assert [greenlet.value for greenlet in waiting] == [("a",)] * 20
    assert len(asked) == 1
