"""The registry describes every setting once, so that sections, `.env.example` and docs can't drift apart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError

from secure_llm_proxy.settings import SECTIONS, Settings, settings_of
from secure_llm_proxy.settings.loading import NOT_YET, known_settings
from secure_llm_proxy.settings.registry import Section, Setting, as_text

ALL = known_settings()
SECTION_CLASSES = list(SECTIONS.values())


def test_every_field_of_every_section_is_a_setting_or_derived() -> None:
    derived = {
        ("ThrottlingSettings", "workers"),
        ("UpstreamSettings", "referred"),
        ("UpstreamSettings", "credentials_directory"),
    }

    for section in SECTION_CLASSES:
        described = {setting.field for setting in settings_of(section)}
        left = {(section.__name__, field) for field in section.model_fields} - {
            (section.__name__, f) for f in described
        }
        assert left <= derived


@pytest.mark.parametrize("setting", ALL, ids=[setting.name for setting in ALL])
def test_a_setting_is_described_in_a_sentence(setting: Setting) -> None:
    assert len(setting.description) >= 10
    assert setting.description[0].isupper() or setting.description[0] == "`"
    assert setting.description.endswith((".", ")"))
    assert "\n" not in setting.description
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*", setting.name)


def test_names_and_synonyms_are_unique_over_all_sections() -> None:
    names = [name for setting in ALL for name in (setting.name, *setting.synonyms)]

    assert sorted(names) == sorted(set(names))
    assert not set(names) & set(NOT_YET)


def test_every_section_stands_in_settings_under_its_name() -> None:
    assert set(SECTIONS) == set(Settings.model_fields)
    for name, section in SECTIONS.items():
        assert isinstance(getattr(Settings(), name), section)


@pytest.mark.parametrize("section", SECTION_CLASSES, ids=[section.__name__ for section in SECTION_CLASSES])
def test_defaults_pass_their_own_constraints(section: type[Section]) -> None:
    for variant in ("default", "production"):
        values = {setting.field: getattr(setting, variant) for setting in settings_of(section)}

        section.model_validate(values)


@pytest.mark.parametrize("section", SECTION_CLASSES, ids=[section.__name__ for section in SECTION_CLASSES])
def test_a_section_is_frozen_and_refuses_unknown_fields(section: type[Section]) -> None:
    built = section()

    with pytest.raises(ValidationError):
        setattr(built, next(iter(section.model_fields)), "other")
    with pytest.raises(ValidationError):
        section.model_validate({"no_such_field": 1})


def test_what_is_called_a_secret_is_one_and_nothing_else_is() -> None:
    for section in SECTION_CLASSES:
        for setting in settings_of(section):
            annotation = section.model_fields[setting.field].annotation
            is_secret = annotation is SecretStr or SecretStr in get_args(annotation)
            assert setting.secret is is_secret, setting.name


def test_names_that_sound_like_secrets_are_secrets() -> None:
    words = re.compile(r"(PASSWORD|SECRET|TOKEN|DSN|KEK|ENCRYPTION_KEY|LLM_API_KEY)$")

    assert [setting.name for setting in ALL if words.search(setting.name) and not setting.secret] == []


def test_no_secret_has_a_default() -> None:
    for setting in ALL:
        if setting.secret and setting.name != "DATABASE_URL":
            assert setting.default is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "true"), (False, "false"), (("a", "b"), "a,b"), ((), ""), (5.0, "5"), (0.25, "0.25"),
     (7, "7"), (Path("a/b"), "a/b")],
)  # fmt: skip
def test_a_default_is_shown_as_one_would_write_it(value: object, text: str) -> None:
    assert as_text(value) == text
