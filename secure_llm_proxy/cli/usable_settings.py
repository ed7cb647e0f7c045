"""Settings judged as the workers will judge them, before any worker is started."""

from __future__ import annotations

from collections.abc import Callable

from secure_llm_proxy.admission import Admission
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.services import PROVIDER, definition_of
from secure_llm_proxy.settings import AdmissionSettings, Settings
from secure_llm_proxy.throttling.redis_throttle import RedisThrottle
from secure_llm_proxy.upstream import Provider


def require_usable(settings: Settings) -> None:
    """Return when every room can be built; else raise `OperatorError` with all that is wrong."""
    if wrong := unusable(settings):
        raise OperatorError(
            "\n".join(["The settings can't be used, nothing was started:", *(f"  - {w}" for w in wrong)])
        )


def unusable(settings: Settings) -> list[str]:
    """A sentence for each thing wrong that only a room can judge: networks, agents, the provider's URL, key and
    certificates, Redis' URL. Connects to nothing.
    """
    admission = settings.admission
    rooms: list[Callable[[], object]] = [
        # One list at a time, so that a mistake in one does not hide the next one's.
        *(
            lambda name=name: Admission(AdmissionSettings(**{name: getattr(admission, name)}))
            for name in AdmissionSettings.model_fields
        )
    ]
    if settings.upstream.api_url is not None:
        rooms.append(lambda: Provider(definition_of(settings.upstream, PROVIDER), settings.upstream).close())
    if settings.redis.url is not None:
        rooms.append(lambda: RedisThrottle(settings.throttling, settings.redis).close())
    wrong: list[str] = []
    for build in rooms:
        try:
            build()
        except OperatorError as error:
            wrong.append(str(error))
    return wrong
