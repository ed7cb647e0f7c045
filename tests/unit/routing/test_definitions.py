"""Which providers the environment names."""

from __future__ import annotations

from pathlib import Path

import pytest

from secure_llm_proxy.routing.definitions import configured_providers, environment_providers, merged
from secure_llm_proxy.settings import SettingsError, UpstreamSettings, load_settings
from secure_llm_proxy.settings.loading import known_settings
from secure_llm_proxy.vocabulary.providers import ProviderDefinition, provider_kinds

SECRETS = {"SECRET_KEY": "9f2c1d7be04a63588c1f0d2e7ab49630", "ENCRYPTION_KEY": "55ee12aa7c04bd810b8e4d1f92c7a635"}
KEYS = {
    "OPENAI_API_KEY": "openai",
    "ANTHROPIC_API_KEY": "anthropic",
    "GOOGLE_AI_API_KEY": "gemini",
    "GEMINI_API_KEY": "gemini",
    "GROQ_API_KEY": "groq",
    "OPENROUTER_API_KEY": "openrouter",
    "MISTRAL_API_KEY": "mistral",
    "COHERE_API_KEY": "cohere",
    "TOGETHER_API_KEY": "together",
}


def settings(tmp_path: Path, **environ: str) -> UpstreamSettings:
    return load_settings({**SECRETS, **environ}, env_file=tmp_path / "none").upstream


def secrets_of(definition: ProviderDefinition) -> list[str]:
    return [key.get_secret_value() for key in definition.keys]


def test_every_kind_with_a_variable_has_a_setting_of_that_name() -> None:
    by_field = {each.field: {each.name, *each.synonyms} for each in known_settings() if each.section == "upstream"}

    kinds = {name: set(kind.key_variables) for name, kind in provider_kinds().items() if kind.key_variables}

    assert kinds == {
        name.removesuffix("_api_key"): by_field[name]
        for name in by_field
        if name.endswith("_api_key") and name != "api_key"
    }


@pytest.mark.parametrize(("variable", "kind"), KEYS.items())
def test_a_providers_variable_makes_a_provider_of_its_kind(variable: str, kind: str, tmp_path: Path) -> None:
    [made] = environment_providers(settings(tmp_path, **{variable: "k-1, k-2,"}))

    assert (made.name, made.kind, made.source) == (kind, kind, "environment")
    assert made.base_url == provider_kinds()[kind].base_url
    assert secrets_of(made) == ["k-1", "k-2"]


def test_azure_is_reached_at_its_endpoint_by_the_current_api(tmp_path: Path) -> None:
    azure = {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://mine.openai.azure.com/"}

    [made] = environment_providers(settings(tmp_path, **azure))

    assert (made.name, made.kind, made.base_url, made.query) == ("azure", "azure", "https://mine.openai.azure.com", "")


@pytest.mark.parametrize(
    ("version", "kind", "query"),
    [
        ("v1", "azure", ""),
        ("preview", "azure", "api-version=preview"),
        ("2024-10-21", "azure_deployments", "api-version=2024-10-21"),
        ("2025-04-01-preview", "azure_deployments", "api-version=2025-04-01-preview"),
    ],
)
def test_a_version_of_azures_api_by_date_is_the_older_api(version: str, kind: str, query: str, tmp_path: Path) -> None:
    azure = {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://mine.openai.azure.com"}

    [made] = environment_providers(settings(tmp_path, **azure, AZURE_OPENAI_API_VERSION=version))

    assert (made.kind, made.query) == (kind, query)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"AZURE_OPENAI_API_KEY": "k"}, "AZURE_OPENAI_ENDPOINT"),
        ({"AZURE_OPENAI_ENDPOINT": "https://x.invalid"}, "AZURE_OPENAI_ENDPOINT"),
        ({"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "x.invalid"}, "AZURE_OPENAI_ENDPOINT"),
        ({"AZURE_OPENAI_API_VERSION": "2024-10-21"}, "AZURE_OPENAI_API_VERSION"),
        ({"AZURE_OPENAI_API_VERSION": "latest"}, "AZURE_OPENAI_API_VERSION"),
        ({"OPENAI_API_KEY": "k", "GROQ_API_KEY": "k", "LLM_MODELS": "a"}, "LLM_MODELS"),
    ],
)
def test_half_a_provider_is_refused_by_the_name_of_what_is_missing(
    environ: dict[str, str], named: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(tmp_path, **environ)

    assert [mistake.name for mistake in refused.value.mistakes] == [named]


def test_the_provider_of_the_url_comes_first_and_keeps_its_name_and_models(tmp_path: Path) -> None:
    environ = {
        "LLM_API_URL": "https://own.invalid/v1",
        "LLM_API_KEY": "own",
        "LLM_MODELS": "a,b",
        "OPENAI_API_KEY": "k",
    }

    first, second = environment_providers(settings(tmp_path, **environ))

    assert (first.name, first.kind, first.base_url) == (
        "openai_compatible",
        "openai_compatible",
        "https://own.invalid/v1",
    )
    assert (first.models, secrets_of(first)) == (("a", "b"), ["own"])
    assert (second.name, second.models) == ("openai", ())


def test_listed_models_are_those_of_the_only_provider(tmp_path: Path) -> None:
    azure = {"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://mine.openai.azure.com"}

    [made] = environment_providers(settings(tmp_path, **azure, LLM_MODELS="gpt-4o,embedder"))

    assert made.models == ("gpt-4o", "embedder")


def test_the_demo_answers_only_where_nobody_else_is_configured(tmp_path: Path) -> None:
    demo = {"DEMO_UPSTREAM_URL": "http://127.0.0.1:9/v1", "LLM_API_KEY": "meant-for-somebody-else"}
    stored = ProviderDefinition("stored", "groq", "https://groq.invalid", source="database")

    alone = configured_providers(settings(tmp_path, **demo))
    beside = configured_providers(settings(tmp_path, **demo, GROQ_API_KEY="k"))
    beside_stored = configured_providers(settings(tmp_path, **demo), stored=[stored])

    assert [(one.name, one.kind, one.keys) for one in alone] == [("demo", "openai_compatible", ())]
    assert [one.name for one in beside] == ["groq"]
    assert [one.name for one in beside_stored] == ["stored"]


def test_what_stands_in_the_database_displaces_nothing() -> None:
    mine = ProviderDefinition("openai", "openai", "https://api.openai.com/v1")
    theirs = ProviderDefinition("openai", "openai", "https://elsewhere.invalid/v1", source="database")

    assert merged([mine], [theirs]) == (mine,)
