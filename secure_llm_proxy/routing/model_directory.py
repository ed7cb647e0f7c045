"""The models on offer: as listed by the operator, else as the provider lists them, kept for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gevent.lock import RLock

from secure_llm_proxy.foundation.clock import Clock
from secure_llm_proxy.foundation.errors import ErrorCode, NotFound, ProxyError, Unavailable
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.chat import Route

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

    def plan(self, model: str | None) -> Route:
        """The route of a request for `model`; None takes DEFAULT_MODEL, else the first listed."""
        listed = self.listed()
        if model is None:
            model = self._settings.default_model or listed[0]
        if model not in listed:
            shown = model[:64].encode("unicode_escape").decode("ascii")
            raise NotFound(
                f"The model `{shown}` does not exist or you do not have access to it.",
                code=ErrorCode.MODEL_NOT_FOUND,
                param="model",
            )
        return Route(provider=self._provider, model=model)

    def _refresh(self) -> None:
        try:
            self._known = self._list_models()
            self._ask_again_s = self._clock.monotonic_s() + self._settings.models_cache_s
        except ProxyError as error:
            self._ask_again_s = self._clock.monotonic_s() + _RETRY_S
            log.warning("models not listed by the provider", extra={"code": error.code, "detail": error.detail})
