"""The models on offer: as listed by the operator, else as the provider lists them, kept for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from gevent.lock import RLock

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ErrorCode, FailureKind, NotFound, ProxyError, Unavailable
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Attempt, ChatRequest, Failure, Route, Target
from secure_llm_proxy.vocabulary.inbound import Tags

log = logging.getLogger(__name__)

_RETRY_S = 5.0


class ModelDirectory:
    """Answers from memory; asks the provider at most once per `models_cache_s`, one greenlet at a time."""

    def __init__(
        self, settings: UpstreamSettings, provider: str, list_models: Callable[[], tuple[str, ...]], clock: Clock
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._list_models = list_models
        self._clock = clock
        self._lock = RLock()
        self._known: tuple[str, ...] = settings.models
        self._ask_again_s = 0.0

    def listed(self) -> tuple[str, ...]:
        """Every model on offer, in the operator's or the provider's order. Raises `Unavailable(models_unavailable)`."""
        if self._settings.models:
            return self._settings.models
        # Who finds the list old asks; the others go on with it, and wait only while there is none at all.
        if self._clock.monotonic_s() >= self._ask_again_s and self._lock.acquire(blocking=not self._known):
            try:
                if self._clock.monotonic_s() >= self._ask_again_s:
                    self._refresh()
            finally:
                self._lock.release()
        if not self._known:
            raise Unavailable(
                "The provider's list of models is unavailable.",
                code=ErrorCode.MODELS_UNAVAILABLE,
                detail="the provider does not list its models; set LLM_MODELS",
                retry_after_s=int(_RETRY_S),
            )
        return self._known

    def plan(self, request: ChatRequest, tags: Tags) -> Route:
        """The route of a request for its model; None takes DEFAULT_MODEL, else the first listed."""
        del tags
        listed = self.listed()
        model = request.model
        if model is None:
            model = self._settings.default_model or listed[0]
        if model not in listed:
            shown = model[:64].encode("unicode_escape").decode("ascii")
            raise NotFound(
                f"The model `{shown}` does not exist or you do not have access to it.",
                code=ErrorCode.MODEL_NOT_FOUND,
                param="model",
            )
        return Route(model, (Target(self._provider, model),))

    def next_attempt(self, route: Route, failures: Sequence[Failure]) -> Attempt | None:
        """There is one provider."""
        del route, failures
        return None

    def began(self, target: Target) -> None:
        """An exchange with it begins."""

    def ended(self, target: Target) -> None:
        """It is over."""

    def answered(self, target: Target) -> None:
        """It gave an answer."""

    def failed(self, target: Target, kind: FailureKind) -> None:
        """It failed to."""

    def _refresh(self) -> None:
        try:
            self._known = self._list_models()
            self._ask_again_s = self._clock.monotonic_s() + self._settings.models_cache_s
        except ProxyError as error:
            self._ask_again_s = self._clock.monotonic_s() + _RETRY_S
            log.warning("models not listed by the provider", extra={"code": error.code, "detail": error.detail})
