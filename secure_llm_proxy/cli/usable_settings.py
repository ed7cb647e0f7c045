"""Settings judged as the workers will judge them, before any worker is started."""

from __future__ import annotations

from collections.abc import Callable

from secure_llm_proxy.admission import Admission
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.routing import ModelsFile, configured_providers, models_file_of
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
    """A sentence for each thing wrong that only a room can judge: networks, agents, providers' URLs, keys and
    certificates, MODELS_FILE, Redis' URL. Connects to nothing.
    """
    admission = settings.admission
    rooms: list[Callable[[], object]] = [
        # One list at a time, so that a mistake in one does not hide the next one's.
        *(
            lambda name=name: Admission(AdmissionSettings(**{name: getattr(admission, name)}))
            for name in AdmissionSettings.model_fields
        )
    ]
    in_file = ModelsFile()
    wrong: list[str] = []
    try:
        in_file = models_file_of(settings.upstream, production=settings.is_production)
    except OperatorError as error:
        wrong.append(str(error))
    rooms += [
        lambda definition=definition: Provider(definition, settings.upstream).close()  # type: ignore[misc]  # mypy#12557
        for definition in configured_providers(settings.upstream, in_file.providers)
    ]
    if settings.redis.url is not None:
        rooms.append(lambda: RedisThrottle(settings.throttling, settings.redis).close())
    for build in rooms:
        try:
            build()
        except OperatorError as error:
            wrong.append(str(error))
    return wrong
