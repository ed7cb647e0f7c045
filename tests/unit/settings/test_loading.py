"""From names and text to sections: every mistake at once, by name, and never a secret in a word of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from secure_llm_proxy.settings import Settings, SettingsError, load_audit_writer_settings, load_settings
from secure_llm_proxy.settings.loading import NOT_YET, known_settings, relaxed_settings

SECRET = "9f2c1d7be04a63588c1f0d2e7ab4963055ee12aa7c04bd81"
OTHER_SECRET = "0b8e4d1f92c7a6350d4e8b1c7f29a6d35e0c4b8f17d2a693"
KEK = "c4" * 8 + "0f1e2d3c4b5a6978" * 3
BASE = {"SECRET_KEY": SECRET, "ENCRYPTION_KEY": OTHER_SECRET}
PROVIDER_KEYS = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "GOOGLE_AI_API_KEY",
    "GROQ_API_KEY",
    "OPENROUTER_API_KEY",
    "MISTRAL_API_KEY",
    "COHERE_API_KEY",
    "TOGETHER_API_KEY",
)
PRODUCTION = {
    **BASE,
    "FLASK_ENV": "production",
    "LLM_API_URL": "https://llm.internal/v1",
    "DATABASE_URL": "postgresql://slp:dbword-7391@db/slp",
    "REDIS_URL": "redis://redis:6379/0",
}


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """The path of a `.env` that does not exist."""
    return tmp_path / "none.env"


def load(environ: Mapping[str, str], env_file: Path) -> Settings:
    return load_settings(environ, env_file=env_file)


def mistakes_of(environ: Mapping[str, str], env_file: Path) -> dict[str, str]:
    """Problem by variable name."""
    with pytest.raises(SettingsError) as refused:
        load(environ, env_file)
    assert len({mistake.name for mistake in refused.value.mistakes}) == len(refused.value.mistakes), refused.value
    for mistake in refused.value.mistakes:
        assert f"  - {mistake.name}: " in str(refused.value)
    return {mistake.name: mistake.problem for mistake in refused.value.mistakes}


def write_env(folder: Path, **values: str) -> Path:
    path = folder / "written.env"
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return path


# --- settings that belong together ------------------------------------------------------------------------------------


def test_a_slot_must_outlive_the_longest_request(nowhere: Path) -> None:
    assert load({**BASE, "UPSTREAM_TOTAL_TIMEOUT_S": "870"}, nowhere).throttling.slot_ttl_s == 900

    mistakes = mistakes_of({**BASE, "UPSTREAM_TOTAL_TIMEOUT_S": "871"}, nowhere)

    assert set(mistakes) == {"IN_FLIGHT_TTL_S"}


def test_a_connection_without_patience_is_refused(nowhere: Path) -> None:
    assert set(mistakes_of({**BASE, "KEEPALIVE_S": "0"}, nowhere)) == {"KEEPALIVE_S"}


# --- what is given and what is not ------------------------------------------------------------------------------------


def test_two_secrets_are_all_that_the_embedded_profile_needs(nowhere: Path) -> None:
    settings = load(BASE, nowhere)

    assert not settings.is_production
    assert (settings.server.host, settings.server.port, settings.server.workers) == ("127.0.0.1", 5000, 1)
    assert settings.admission.allowed_addresses == ()
    assert (settings.throttling.key_requests_per_minute, settings.throttling.key_concurrent) == (600, 100)


@pytest.mark.parametrize("profile", ["", "development", "testing", "embedded", "Development"])
def test_other_profiles_of_flask_are_the_embedded_one(profile: str, nowhere: Path) -> None:
    assert load({**BASE, "FLASK_ENV": profile}, nowhere).server.profile == "embedded"


@pytest.mark.parametrize("profile", ["production", "Production", "PRODUCTION", " production "])
def test_production_is_strict_however_it_is_written(profile: str, nowhere: Path) -> None:
    settings = load({**PRODUCTION, "FLASK_ENV": profile}, nowhere)

    assert settings.is_production
    assert settings.server.workers == settings.throttling.workers == 4
    assert "10.0.0.0/8" in settings.admission.allowed_addresses
    assert settings.admission.blocked_agents == ("curl", "wget", "python-requests", "bot", "spider")
    assert settings.throttling.key_requests_per_minute == 30
    assert (settings.throttling.key_burst, settings.throttling.key_concurrent) == (5, 50)
    assert settings.throttling.address_requests_per_minute == 300


def test_an_unknown_profile_is_refused_and_not_taken_for_a_lax_one(nowhere: Path) -> None:
    assert set(mistakes_of({**BASE, "FLASK_ENV": "prod"}, nowhere)) == {"FLASK_ENV"}


def test_a_given_value_wins_over_the_production_default(nowhere: Path) -> None:
    settings = load(
        {**PRODUCTION, "RATE_LIMIT_PER_MINUTE": "77", "ALLOWED_IPS": "192.0.2.0/24, 2001:db8::/32"}, nowhere
    )

    assert settings.throttling.key_requests_per_minute == 77
    assert settings.admission.allowed_addresses == ("192.0.2.0/24", "2001:db8::/32")


@pytest.mark.parametrize("setting", known_settings(), ids=lambda setting: setting.name)
def test_an_empty_or_blank_value_is_no_value(setting: object, nowhere: Path) -> None:
    name = setting.name  # type: ignore[attr-defined]  # pytest hands parameters over untyped
    without = {known: value for known, value in PRODUCTION.items() if known != name}

    def told(environ: Mapping[str, str]) -> str:
        try:
            return repr(load(environ, nowhere).model_dump())
        except SettingsError as refused:
            return str(refused)

    expected = told(without)

    assert told({**without, name: ""}) == expected
    assert told({**without, name: "  "}) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("yes", True), ("on", True), ("false", False), ("FALSE", False),
     ("0", False), ("no", False), ("off", False), (" false ", False)],
)  # fmt: skip
def test_switches_are_read_in_every_usual_spelling(text: str, value: bool, nowhere: Path) -> None:  # noqa: FBT001
    assert load({**BASE, "SSL_VERIFY": text}, nowhere).upstream.ssl_verify is value


def test_switches_that_say_neither_are_refused(nowhere: Path) -> None:
    assert set(mistakes_of({**BASE, "SSL_VERIFY": "maybe"}, nowhere)) == {"SSL_VERIFY"}


# --- every mistake at once --------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_together_by_name(nowhere: Path) -> None:
    wrong = {
        "FLASK_ENV": "production",
        "PORT": "seventy",
        "WORKERS": "0",
        "SSL_VERIFY": "maybe",
        "LOG_LEVEL": "LOUD",
        "RATE_LIMIT_PER_MINUTE": "0",
        "BIND": "0.0.0.0:80",
        "DATABASE_URL": "mysql://u@h/db",
        "REDIS_URL": "http://redis",
        "LLM_API_URL": "ftp://llm",
        "RATE_LIMIT_WINDOW": "60",
        "SECRET_KEY": "short",
        "DEBUG": "true",
        "AUDIT_ENCRYPTION_ENABLED": "false",
        "AUTHENTICATION_REQUIRED": "false",
        "RATE_LIMIT_PER_MINUT": "5",
        "MFA_REQUIRED": "none",
        "MFA_METHOD": "sms",
    }

    found = mistakes_of(wrong, nowhere)

    expected = (set(wrong) - {"FLASK_ENV"}) | {"ENCRYPTION_KEY"}
    assert set(found) == expected


def test_one_mistake_is_told_in_the_singular(nowhere: Path) -> None:
    with pytest.raises(SettingsError, match=r"^1 setting is wrong, nothing was started:\n  - SECRET_KEY: is missing"):
        load({"ENCRYPTION_KEY": SECRET}, nowhere)


@pytest.mark.parametrize("name", ["PORT", "WORKERS", "MAX_REQUEST_SIZE", "UPSTREAM_IDLE_TIMEOUT_S", "REDIS_TIMEOUT"])
@pytest.mark.parametrize("text", ["x", "-1", "1e99999", "nan", "inf", "9" * 5000])
def test_a_number_out_of_its_range_is_refused_by_name(name: str, text: str, nowhere: Path) -> None:
    assert set(mistakes_of({**BASE, name: text}, nowhere)) == {name}


def test_several_workers_need_both_shared_engines(nowhere: Path) -> None:
    found = mistakes_of({**BASE, "WORKERS": "2"}, nowhere)

    assert set(found) == {"REDIS_URL", "DATABASE_URL"}
    assert "2 workers" in found["REDIS_URL"]
    assert "SQLite" in found["DATABASE_URL"]


# --- production -------------------------------------------------------------------------------------------------------


def test_a_complete_production_starts_with_nothing_relaxed(nowhere: Path) -> None:
    assert relaxed_settings(load(PRODUCTION, nowhere)) == []


@pytest.mark.parametrize(
    ("name", "value", "told_as"),
    [
        ("DEBUG", "true", "DEBUG"),
        ("FLASK_DEBUG", "1", "DEBUG"),
        ("SSL_VERIFY", "false", "SSL_VERIFY"),
        ("AUTHENTICATION_REQUIRED", "false", "AUTHENTICATION_REQUIRED"),
        ("API_KEY_VALIDATION", "no", "AUTHENTICATION_REQUIRED"),
        ("AUDIT_ENCRYPTION_ENABLED", "0", "AUDIT_ENCRYPTION_ENABLED"),
    ],
)
def test_production_refuses_each_relaxation_by_name_and_embedded_lists_it(
    name: str, value: str, told_as: str, nowhere: Path
) -> None:
    found = mistakes_of({**PRODUCTION, name: value}, nowhere)
    relaxed = relaxed_settings(load({**BASE, name: value}, nowhere))

    assert set(found) == {told_as}
    assert "production refuses" in found[told_as]
    assert [listed for listed, _ in relaxed] == [told_as]


def test_production_does_not_route_to_the_demo(nowhere: Path) -> None:
    without = {name: value for name, value in PRODUCTION.items() if name != "LLM_API_URL"}

    assert set(mistakes_of(without, nowhere)) == {"LLM_API_URL"}
    assert set(mistakes_of({**without, "DEMO_UPSTREAM_URL": "http://127.0.0.1:1/v1"}, nowhere)) == {"LLM_API_URL"}


@pytest.mark.parametrize("name", ["SECRET_KEY", "ENCRYPTION_KEY"])
@pytest.mark.parametrize("weak", ["short", "a" * 64, "change-me-please-0123456789-abcdefgh", "0123456789abcdef" * 4])
def test_production_refuses_weak_secrets_without_quoting_them(name: str, weak: str, nowhere: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load({**PRODUCTION, name: weak}, nowhere)

    assert [mistake.name for mistake in refused.value.mistakes] == [name]
    assert weak not in str(refused.value)


def test_production_needs_redis_and_postgresql_for_its_workers(nowhere: Path) -> None:
    bare = {name: value for name, value in PRODUCTION.items() if name not in {"REDIS_URL", "DATABASE_URL"}}

    assert set(mistakes_of(bare, nowhere)) == {"REDIS_URL", "DATABASE_URL"}
    assert load({**bare, "WORKERS": "1"}, nowhere).server.workers == 1


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("SECRET_KEYS", "SECRET_KEY"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("RATE_LIMT_PER_MINUTE", "RATE_LIMIT_PER_MINUTE"),
        ("RATE_LIMIT_PRE_MINUTE", "RATE_LIMIT_PER_MINUTE"),
        ("AUTHENTICATION_REQIRED", "AUTHENTICATION_REQUIRED"),
        ("AUTHENTIFICATION_REQUIRED", "AUTHENTICATION_REQUIRED"),
        ("SSL_VERFIY", "SSL_VERIFY"),
        ("BLOCKED_IP", "BLOCKED_IPS"),
    ],
)
def test_a_near_miss_is_an_error_with_a_suggestion_wherever_it_stands(
    misspelt: str, meant: str, tmp_path: Path
) -> None:
    in_environment = mistakes_of({**BASE, misspelt: "x"}, tmp_path / "none")
    in_file = mistakes_of(BASE, write_env(tmp_path, **{misspelt: "x"}))

    for found in (in_environment, in_file):
        assert set(found) == {misspelt}
        assert f"did you mean {meant}?" in found[misspelt]


def test_a_near_miss_in_file_and_environment_is_told_once(tmp_path: Path) -> None:
    assert set(mistakes_of({**BASE, "DATABASE_URI": "x"}, write_env(tmp_path, DATABASE_URI="x"))) == {"DATABASE_URI"}


def test_an_unknown_name_is_refused_in_the_file_and_nobodys_business_in_the_environment(tmp_path: Path) -> None:
    found = mistakes_of(BASE, write_env(tmp_path, SOMETHING_ELSE="x", lower_case="y"))

    assert set(found) == {"SOMETHING_ELSE", "lower_case"}
    assert "docs/configuration.md" in found["SOMETHING_ELSE"]
    load(
        {**BASE, "SOMETHING_ELSE": "x", "lower_case": "y", "PATH": "/bin", "HOME": "/", "LANG": "C"}, tmp_path / "none"
    )


def test_the_environment_of_an_ordinary_machine_is_never_mistaken_for_ours(nowhere: Path) -> None:
    ordinary = [
        "PATH", "HOME", "USER", "SHELL", "TERM", "LANG", "LC_ALL", "PWD", "OLDPWD", "HOSTNAME", "LOGNAME", "MAIL",
        "EDITOR", "PAGER", "DISPLAY", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "VIRTUAL_ENV", "PYTHONPATH", "TMPDIR",
        "INVOCATION_ID", "JOURNAL_STREAM", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_PORT", "REDIS_PORT", "REDIS_SERVICE_HOST", "REDIS_SERVICE_PORT", "POSTGRES_PASSWORD",
        "POSTGRES_USER", "PGHOST", "PGPASSWORD", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
        "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DEBIAN_FRONTEND", "GITHUB_TOKEN",
        "COMPOSE_PROJECT_NAME", "DOCKER_HOST", "TZ", "MAKEFLAGS", "WERKZEUG_RUN_MAIN", "FLASK_APP", "GUNICORN_CMD_ARGS",
    ]  # fmt: skip

    load({**BASE, **dict.fromkeys(ordinary, "x")}, nowhere)


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_a_name_whose_work_is_not_done_yet_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    in_environment = mistakes_of({**BASE, name: "true"}, tmp_path / "none")
    in_file = mistakes_of(BASE, write_env(tmp_path, **{name: "true"}))

    for found in (in_environment, in_file):
        assert set(found) == {name}
        assert NOT_YET[name] in found[name]


def test_a_line_of_the_file_without_a_name_does_not_show_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "broken.env"
    path.write_text(f"SECRET_KEY={SECRET}\nENCRYPTION_KEY={OTHER_SECRET}\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n")

    with pytest.raises(SettingsError) as refused:
        load({}, path)

    assert "MIIEvQ" not in str(refused.value)


# --- synonyms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [s for s in known_settings() if s.synonyms], ids=lambda setting: setting.name)
def test_a_synonym_means_the_same(setting: object, nowhere: Path) -> None:
    name, synonyms = setting.name, setting.synonyms  # type: ignore[attr-defined]
    value = {"DEBUG": "true", "AUTHENTICATION_REQUIRED": "false", "LOG_DIR": "/tmp/slp-logs"}.get(name, "1")  # noqa: S108

    by_name = load({**BASE, name: value}, nowhere)

    for synonym in synonyms:
        assert load({**BASE, synonym: value}, nowhere) == by_name
        assert load({**BASE, synonym: value, name: value}, nowhere) == by_name


def test_synonyms_that_contradict_are_refused(nowhere: Path) -> None:
    found = mistakes_of({**BASE, "AUTHENTICATION_REQUIRED": "true", "API_KEY_VALIDATION": "false"}, nowhere)

    assert list(found) == ["API_KEY_VALIDATION"]
    assert "AUTHENTICATION_REQUIRED" in found["API_KEY_VALIDATION"]


def test_two_spellings_of_one_value_are_no_contradiction(nowhere: Path) -> None:
    settings = load({**BASE, "DEBUG": "False", "FLASK_DEBUG": "0", "WORKERS": "1", "WEB_CONCURRENCY": " 1"}, nowhere)

    assert settings.server.debug is False


def test_a_synonym_in_a_stronger_source_wins_over_the_name_in_a_weaker(tmp_path: Path) -> None:
    settings = load({**BASE, "WEB_CONCURRENCY": "1"}, write_env(tmp_path, WORKERS="3"))

    assert settings.server.workers == 1


# --- sources ----------------------------------------------------------------------------------------------------------


def test_the_environment_wins_over_credentials_and_these_over_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "redis_password").write_text("from-credentials\n")
    (folder / "metrics_token").write_text("from-credentials\n")
    env_file = write_env(
        tmp_path, REDIS_PASSWORD="from-file", METRICS_TOKEN="from-file", LLM_API_KEY="from-file", DEFAULT_MODEL="m"
    )

    settings = load({**BASE, "CREDENTIALS_DIRECTORY": str(folder), "REDIS_PASSWORD": "from-environment"}, env_file)

    assert settings.redis.password is not None
    assert settings.redis.password.get_secret_value() == "from-environment"
    assert settings.telemetry.metrics_token is not None
    assert settings.telemetry.metrics_token.get_secret_value() == "from-credentials"
    assert settings.upstream.api_key is not None
    assert settings.upstream.api_key.get_secret_value() == "from-file"
    assert settings.upstream.default_model == "m"


def test_credentials_may_be_named_in_either_case_and_end_with_a_newline(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text(SECRET + "\n")
    (tmp_path / "ENCRYPTION_KEY").write_text(OTHER_SECRET + "\n")
    (tmp_path / "unrelated").write_text("x")

    settings = load({"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path / "none")

    assert settings.secrets.secret_key is not None
    assert settings.secrets.secret_key.get_secret_value() == SECRET
    assert settings.secrets.encryption_key is not None
    assert settings.secrets.encryption_key.get_secret_value() == OTHER_SECRET


def test_credentials_may_come_as_systemd_names_those_of_a_whole_directory(tmp_path: Path) -> None:
    (tmp_path / "credentials_secret_key").write_text(SECRET + "\n")
    (tmp_path / "credentials_ENCRYPTION_KEY").write_text(OTHER_SECRET + "\n")

    settings = load({"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path / "none")

    assert settings.secrets.secret_key is not None
    assert settings.secrets.secret_key.get_secret_value() == SECRET
    assert settings.secrets.encryption_key is not None
    assert settings.secrets.encryption_key.get_secret_value() == OTHER_SECRET


def test_a_credentials_directory_that_is_gone_is_empty(tmp_path: Path) -> None:
    load({**BASE, "CREDENTIALS_DIRECTORY": str(tmp_path / "gone")}, tmp_path / "none")


def test_the_file_is_named_by_env_file_and_values_are_not_interpolated(tmp_path: Path) -> None:
    path = tmp_path / "other.env"
    path.write_text(
        f"# a comment\nexport SECRET_KEY=\"{SECRET}\"\nENCRYPTION_KEY='{OTHER_SECRET}'\nLLM_API_KEY=a${{HOME}}b$c\n"
    )

    settings = load_settings({"ENV_FILE": str(path)})

    assert settings.upstream.api_key is not None
    assert settings.upstream.api_key.get_secret_value() == "a${HOME}b$c"


def test_loading_does_not_change_the_environment_of_the_process(tmp_path: Path) -> None:
    before = dict(os.environ)

    load(BASE, write_env(tmp_path, LLM_API_KEY="sk-x"))

    assert dict(os.environ) == before


# --- derived values ---------------------------------------------------------------------------------------------------


def test_paths_hang_on_the_instance_directory_and_are_absolute(tmp_path: Path) -> None:
    settings = load({**BASE, "INSTANCE_DIR": str(tmp_path / "data")}, tmp_path / "none")

    instance = tmp_path / "data"
    assert settings.server.instance_directory == instance
    assert settings.audit.directory == instance / "audit"
    assert settings.audit.keys_directory == instance / "audit-keys"
    assert settings.audit.socket == instance / "run" / "audit.sock"
    assert settings.telemetry.log_directory == instance / "log"
    assert settings.database.url.get_secret_value() == f"sqlite:///{instance / 'app.db'}"


def test_a_relative_instance_directory_is_made_absolute(nowhere: Path) -> None:
    settings = load({**BASE, "INSTANCE_DIR": "some/where"}, nowhere)

    for path in (settings.audit.directory, settings.audit.keys_directory, settings.audit.socket):
        assert path.is_absolute()
        assert path.is_relative_to(Path.cwd() / "some" / "where")


def test_paths_that_are_given_stay(tmp_path: Path) -> None:
    given = {
        "AUDIT_DIR": str(tmp_path / "a"),
        "AUDIT_KEYS_DIR": str(tmp_path / "k"),
        "AUDIT_SOCKET": str(tmp_path / "s"),
        "LOG_PATH": str(tmp_path / "l"),
        "DATABASE_URL": "postgres://u@h/db",
    }

    settings = load({**BASE, **given}, tmp_path / "none")

    assert [settings.audit.directory, settings.audit.keys_directory, settings.audit.socket] == [
        tmp_path / "a",
        tmp_path / "k",
        tmp_path / "s",
    ]
    assert settings.telemetry.log_directory == tmp_path / "l"
    assert settings.database.url.get_secret_value() == "postgresql+psycopg2://u@h/db"


def test_debug_only_raises_the_log_level(nowhere: Path) -> None:
    settings = load({**BASE, "FLASK_DEBUG": "1", "LOG_LEVEL": "ERROR"}, nowhere)

    assert settings.telemetry.log_level == "DEBUG"


@pytest.mark.parametrize(
    ("url", "password", "expected"),
    [
        ("redis://h:6379/0", "p@ss/w:rd", "redis://:p%40ss%2Fw%3Ard@h:6379/0"),
        ("redis://user@h/0", "pw", "redis://user:pw@h/0"),
        ("redis://:own@h/0", "pw", "redis://:own@h/0"),
        ("rediss://h/0?ssl_cert_reqs=required", "pw", "rediss://:pw@h/0?ssl_cert_reqs=required"),
        ("unix:///run/redis.sock?db=1", "pw", "unix://:pw@/run/redis.sock?db=1"),
        ("redis://[::1]:6379", None, "redis://[::1]:6379"),
    ],
)
def test_the_password_of_redis_is_merged_where_its_url_has_none(
    url: str, password: str | None, expected: str, nowhere: Path
) -> None:
    given = {**BASE, "REDIS_URL": url} | ({"REDIS_PASSWORD": password} if password else {})

    assert load(given, nowhere).redis.connection_url() == expected


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_is_shown_by_settings_in_any_form(nowhere: Path) -> None:
    secrets = {
        "SECRET_KEY": SECRET,
        "ENCRYPTION_KEY": OTHER_SECRET,
        "SECRET_KEY_PREVIOUS": "canary-earlier-5c1e",
        "ENCRYPTION_KEY_PREVIOUS": "canary-sealed-5c1e",
        "JWT_SECRET": "canary-jwt-5c1e",
        "DATABASE_URL": "postgresql://u:canary-db-5c1e@h/d",
        "REDIS_URL": "redis://:canary-redis-5c1e@h",
        "REDIS_PASSWORD": "canary-redisword-5c1e",
        "LLM_API_KEY": "canary-llm-5c1e",
        "AUDIT_KEK": KEK,
        "AUDIT_KEK_PREVIOUS": "canary-kek-5c1e",
        "SENTRY_DSN": "https://canary-sentry-5c1e@sentry.internal/1",
        "METRICS_TOKEN": "canary-metrics-5c1e",
        **{name: f"canary-{name.lower()}-5c1e" for name in PROVIDER_KEYS},
    }
    assert set(secrets) == {setting.name for setting in known_settings() if setting.secret}

    settings = load({**secrets, "AZURE_OPENAI_ENDPOINT": "https://azure.invalid"}, nowhere)

    for text in (str(settings), repr(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "canary" not in text
        assert not any(value in text for value in secrets.values())


def test_no_value_is_shown_by_an_error(tmp_path: Path) -> None:
    # Every setting gets a value that is wrong for its type, so that every way to be wrong is tried.
    wrong = {name: f"canary-{number}-5c1e" for number, name in enumerate(_every_name())}

    with pytest.raises(SettingsError) as refused:
        load({**wrong, "FLASK_ENV": "production"}, tmp_path / "none")
    with pytest.raises(SettingsError) as refused_file:
        load({}, write_env(tmp_path, **wrong, UNKNOWN_NAME="canary-unknown-5c1e"))

    for error in (refused.value, refused_file.value):
        assert len(error.mistakes) > 20
        assert "canary" not in str(error)
        assert "canary" not in repr(error)
        assert "canary" not in repr(error.__cause__)
        assert error.__cause__ is None
        assert error.__context__ is None


def _every_name() -> list[str]:
    return [name for setting in known_settings() for name in (setting.name, *setting.synonyms)]


def test_the_key_of_the_audit_log_never_reaches_the_web_process(tmp_path: Path) -> None:
    (tmp_path / "audit_kek").write_text(KEK)

    for settings in (
        load({**BASE, "AUDIT_KEK": KEK}, tmp_path / "none"),
        load(BASE, write_env(tmp_path, AUDIT_KEK=KEK)),
        load({**BASE, "CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path / "none"),
    ):
        assert settings.audit.kek is None


# --- the audit writer -------------------------------------------------------------------------------------------------


def test_the_writer_gets_its_key_and_its_paths(tmp_path: Path) -> None:
    settings = load_audit_writer_settings(
        {"AUDIT_KEK": KEK, "INSTANCE_DIR": str(tmp_path), "AUDIT_DEPLOYMENT": "prod"}, env_file=tmp_path / "none"
    )

    assert settings.kek is not None
    assert settings.kek.get_secret_value() == KEK
    assert settings.directory == tmp_path / "audit"
    assert settings.deployment == "prod"
    assert KEK not in repr(settings)


def test_the_writer_does_not_care_for_other_rooms_mistakes(nowhere: Path) -> None:
    load_audit_writer_settings({"AUDIT_KEK": KEK, "PORT": "x", "DATABASE_URL": "mysql://h"}, env_file=nowhere)


def test_the_writer_without_its_key_names_it(nowhere: Path) -> None:
    with pytest.raises(SettingsError, match=r"AUDIT_KEK: is missing"):
        load_audit_writer_settings({}, env_file=nowhere)


def test_the_writer_tells_its_own_mistakes_together(nowhere: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load_audit_writer_settings({"AUDIT_PATIENCE_S": "x", "AUDIT_SEGMENT_AGE_S": "-1"}, env_file=nowhere)

    assert [mistake.name for mistake in refused.value.mistakes] == [
        "AUDIT_PATIENCE_S",
        "AUDIT_SEGMENT_AGE_S",
        "AUDIT_KEK",
    ]


def test_the_writer_writes_readable_bodies_only_outside_production(nowhere: Path) -> None:
    plain = {"AUDIT_ENCRYPTION_ENABLED": "false"}

    assert load_audit_writer_settings(plain, env_file=nowhere).encryption_enabled is False
    with pytest.raises(SettingsError, match=r"AUDIT_ENCRYPTION_ENABLED: .*production refuses"):
        load_audit_writer_settings({**plain, "AUDIT_KEK": KEK, "FLASK_ENV": "production"}, env_file=nowhere)


@pytest.mark.parametrize("misspelt", ["AUDIT_ENCRYPTION_ENABLD", "AUDIT_DIRS"])
def test_the_writer_refuses_a_misspelt_name_of_its_own(misspelt: str, nowhere: Path) -> None:
    with pytest.raises(SettingsError, match=f"{misspelt}: is not a setting"):
        load_audit_writer_settings({"AUDIT_KEK": KEK, misspelt: "x"}, env_file=nowhere)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_settings_import_nothing_of_the_product_but_themselves() -> None:
    program = (
        "import sys, secure_llm_proxy.settings\n"
        "print([name for name in sys.modules if name.startswith('secure_llm_proxy.')"
        " and not name.startswith('secure_llm_proxy.settings')])"
    )

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert told.stdout.strip() == "[]"


def test_none_means_nothing_where_nothing_is_possible(nowhere: Path) -> None:
    production = {
        "FLASK_ENV": "production",
        "SECRET_KEY": "b7e1c09d4f2a4c58a3e61d9078fb25ce",
        "ENCRYPTION_KEY": "04d8f6a1c27b4e95b3d07f1e6c8a5920",
        "LLM_API_URL": "https://provider.example/v1",
        "WORKERS": "1",
    }

    settings = load({**production, "ALLOWED_IPS": "none", "BLOCKED_USER_AGENTS": "None", "LOG_DIR": "none"}, nowhere)

    assert settings.admission.allowed_addresses == ()
    assert settings.admission.blocked_agents == ()
    assert settings.telemetry.log_directory is None
    assert "LOG_LEVEL" in mistakes_of({**production, "LOG_LEVEL": "none"}, nowhere)


def test_a_default_model_that_is_not_on_offer_is_refused(nowhere: Path) -> None:
    assert "DEFAULT_MODEL" in mistakes_of({"LLM_MODELS": "a,b", "DEFAULT_MODEL": "c"}, nowhere)


def test_switching_off_what_is_not_there_yet_asks_for_nothing(tmp_path: Path) -> None:
    path = write_env(tmp_path, CACHE_ENABLED="false", SECRET_KEY="s" * 40, ENCRYPTION_KEY="e" * 40)

    assert load({"MFA_REQUIRED": "no"}, path).server.port == 5000
    assert "CACHE_ENABLED" in mistakes_of({"CACHE_ENABLED": "true"}, path)
