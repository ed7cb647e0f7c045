"""The providers that the environment names: LLM_API_URL's, the origins' variables, and the demo where there is none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from pydantic import SecretStr

from secure_llm_proxy.routing.models import ModelsFile
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

COMPATIBLE = "openai_compatible"
DEMO = "demo"
_AZURE_CURRENT = (None, "v1")
_AZURE_PREVIEW = "preview"


def environment_providers(settings: UpstreamSettings) -> tuple[ProviderDefinition, ...]:
    """LLM_API_URL's provider first, then each whose key is set, in the order of the settings; named as their kinds.

    A variable to which the models file refers makes no provider by itself: the file says what it is for. LLM_MODELS are the
    models of the first, or of the only one.
    """
    found = []
    if settings.api_url is not None:
        found.append(compatible_provider(settings, COMPATIBLE))
    kinds = provider_kinds()
    for kind, secret in settings.keys_by_kind().items():
        if not set(kinds[kind].key_variables) & settings.referred.keys():
            found.append(provider_of_kind(settings, kind, several(secret)))
    if settings.models and settings.api_url is None and len(found) == 1:
        found = [replace(found[0], models=settings.models)]
    return tuple(found)


def provider_of_kind(settings: UpstreamSettings, kind: str, keys: tuple[SecretStr, ...]) -> ProviderDefinition:
    if kind == "azure":
        kind, base_url, query = azure_place(settings.azure_endpoint or "", settings.azure_api_version)
        return ProviderDefinition("azure", kind, base_url, keys, query=query)
    return ProviderDefinition(kind, kind, provider_kinds()[kind].base_url or "", keys)


def compatible_provider(settings: UpstreamSettings, name: str) -> ProviderDefinition:
    """The provider of LLM_API_URL, LLM_API_KEY and LLM_MODELS."""
    keys = several(settings.api_key) if settings.api_key is not None else ()
    return ProviderDefinition(name, COMPATIBLE, settings.api_url or "", keys, models=settings.models)


def demo_provider(url: str) -> ProviderDefinition:
    """It gets no key, since LLM_API_KEY is meant for somebody else, and no names of models, which it would not know. It speaks
    chat completions alone; every other format is translated into those.
    """
    return ProviderDefinition(DEMO, COMPATIBLE, url, formats={WireFormat.OPENAI_CHAT: "/chat/completions"})


def azure_place(endpoint: str, api_version: str | None) -> tuple[str, str, str]:
    """Kind, base URL and query: a version by date is served by the older API.

    Source: Azure OpenAI, "API version lifecycle" (2026-11).
    """
    base_url = endpoint.rstrip("/")
    if api_version in _AZURE_CURRENT:
        return "azure", base_url, ""
    kind = "azure" if api_version == _AZURE_PREVIEW else "azure_deployments"
    return kind, base_url, f"api-version={api_version}"


def several(secret: SecretStr) -> tuple[SecretStr, ...]:
    """Keys, comma separated."""
    return tuple(SecretStr(key) for part in secret.get_secret_value().split(",") if (key := part.strip()))


def models_file_of(settings: UpstreamSettings, *, production: bool) -> ModelsFile:
    """MODELS_FILE as it stands now; nothing where there is none. Raises `OperatorError` with all that is wrong in it."""
    if settings.models_file is None:
        return ModelsFile()
    # Whoever has no such file is spared its reader and PyYAML.
    from secure_llm_proxy.routing.models_file import read_models_file  # noqa: PLC0415

    return read_models_file(settings, settings.models_file, production=production)


def configured_providers(
    settings: UpstreamSettings,
    in_file: Collection[ProviderDefinition] = (),
    stored: Collection[ProviderDefinition] = (),
) -> tuple[ProviderDefinition, ...]:
    """The file's first, then the environment's, then the database's; the demo where there is none of them."""
    found = merged(in_file, environment_providers(settings), stored)
    if not found and settings.demo_url is not None:
        return (demo_provider(settings.demo_url),)
    return found


def merged(*groups: Collection[ProviderDefinition]) -> tuple[ProviderDefinition, ...]:
    """All of them, each name once: an earlier group wins, so that nothing in the database displaces what stands in a file."""
    found: dict[str, ProviderDefinition] = {}
    for group in groups:
        for definition in group:
            found.setdefault(definition.name, definition)
    return tuple(found.values())
