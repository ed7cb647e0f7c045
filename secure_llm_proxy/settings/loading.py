"""From names and text to sections; every mistake is collected before one exception tells them all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import get_args, get_origin
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError

from secure_llm_proxy.settings.database_url import normalise_database_url
from secure_llm_proxy.settings.registry import Section, Setting, settings_of
from secure_llm_proxy.settings.sections import (
    SECTIONS,
    AuditSettings,
    ServerSettings,
    Settings,
    TelemetrySettings,
    UpstreamSettings,
)
from secure_llm_proxy.settings.strength import weakness_of

# Names of the origins whose work this release does not do yet. Taking them in silence would promise what is not kept.
NOT_YET: dict[str, str] = {
    "CACHE_ENABLED": "there is no response cache yet",
    "CACHE_TTL_SECONDS": "there is no response cache yet",
    "ENABLE_REQUEST_LOGGING": "requests are always recorded in the audit log",
}
_NEAR_FROM, _TWO_EDITS_FROM = 6, 12
_MODELS_FILE = Path("config/models.yaml")
_MODELS_FILE_BYTES_MAX = 1_048_576
# Where `config/models.yaml` says which variable holds a key.
_REFERENCE = re.compile(r"\benv:([A-Za-z_][A-Za-z0-9_]*)")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
NONE = "none"
_CREDENTIALS_PREFIX = "credentials_"
_WRITER_KEYS = frozenset({"AUDIT_KEK", "AUDIT_KEK_PREVIOUS"})
# What a running server can't take in: it listens where it was told to; how long its end may take is its supervisor's and
# systemd's to know; whether the schema is this release's is looked at before a start; the audit writer goes on as it is.
FROM_START = frozenset(
    {
        "BIND",
        "DATABASE_URL",
        "GRACEFUL_TIMEOUT_S",
        "HOST",
        "INSTANCE_DIR",
        "PORT",
        *(setting.name for setting in settings_of(AuditSettings) if setting.name not in _WRITER_KEYS),
    }
)
# Read by our parts but not settings of ours, so they may stand in `.env` too.
_FOREIGN = frozenset(
    {"SSL_CERT_FILE", "SSL_CERT_DIR", "TZ", "PYTHONUNBUFFERED", "PROMETHEUS_MULTIPROC_DIR", "NO_COLOR"}
)
# Two spellings of one value contradict nothing.
_SWITCHES = {
    "true": "true",
    "1": "true",
    "yes": "true",
    "on": "true",
    "false": "false",
    "0": "false",
    "no": "false",
    "off": "false",
}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with one variable."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class SettingsError(Exception):
    """Nothing starts. `mistakes` holds every one found, each by variable name."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = mistakes
        count = "1 setting is" if len(mistakes) == 1 else f"{len(mistakes)} settings are"
        super().__init__(f"{count} wrong, nothing was started:\n" + "\n".join(f"  - {mistake}" for mistake in mistakes))


@dataclass(frozen=True, slots=True, repr=False)
class LoadedSettings:
    """`settings`, and what they were made of: `values` by setting, and the lines of the file.

    `waiting` names what was changed meanwhile and counts from the next start.
    """

    settings: Settings
    values: Mapping[str, str]
    in_file: Mapping[str, str]
    waiting: tuple[str, ...] = ()


def load_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = None) -> Settings:
    """Read `.env`, systemd credentials and the environment (the later ones win) into checked sections.

    Raises `SettingsError` with every mistake. The audit writer's key is left out: only
    `load_audit_writer_settings` hands it over.
    """
    return start_settings(environ, env_file=env_file).settings


def start_settings(environ: Mapping[str, str] | None = None, *, env_file: Path | None = None) -> LoadedSettings:
    """The same for who may be asked to load them again: `reload_settings` goes on from what comes back."""
    collected = _collect(environ, env_file)
    return LoadedSettings(_checked(collected), _without_writer_keys(collected.values), collected.in_file)


def reload_settings(
    running: LoadedSettings, environ: Mapping[str, str] | None = None, *, env_file: Path | None = None
) -> LoadedSettings:
    """The settings of now for a server that runs with `running`: what it can't take in is as at its start, and `waiting`.

    The process environment of a running server never changes. What systemd put there from the file, and what the file has
    changed since, is `waiting` too. Raises `SettingsError` when the settings of now, or what they make together with those
    that wait, are wrong.
    """
    environ = os.environ if environ is None else environ
    collected = _collect(environ, env_file)
    # Also what waits is told when it is wrong: the next start would fail.
    _checked(collected)
    now = _without_writer_keys(collected.values)
    kept = {name: value for name, value in running.values.items() if name in FROM_START}
    waiting = {name for name in FROM_START if now.get(name) != kept.get(name)}
    waiting |= {
        name
        for name, value in running.in_file.items()
        if environ.get(name) == value and collected.in_file.get(name) != value
    }
    values = {name: value for name, value in now.items() if name not in FROM_START} | kept
    settings = _checked(replace(collected, values=values))
    return LoadedSettings(settings, values, running.in_file, tuple(sorted(waiting)))


def _without_writer_keys(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in _WRITER_KEYS}


def _checked(collected: _Collected) -> Settings:
    values, mistakes = collected.values, collected.mistakes
    settings = _build(values, mistakes)
    upstream = {
        "models_file": collected.models_file,
        "referred": collected.referred,
        "credentials_directory": collected.credentials_directory,
    }
    settings = settings.model_copy(update={"upstream": settings.upstream.model_copy(update=upstream)})
    mistakes += _contradictions(settings)
    if mistakes:
        raise SettingsError(mistakes)
    return settings.model_copy(update={"audit": settings.audit.model_copy(update={"kek": None, "previous_keks": None})})


def load_audit_writer_settings(
    environ: Mapping[str, str] | None = None, *, env_file: Path | None = None
) -> AuditSettings:
    """The audit writer's section, with its key-encryption key. Looks at no other section's values."""
    collected = _collect(environ, env_file)
    values, mistakes = collected.values, collected.mistakes
    settings = _build(values, [])
    names = {setting.name for setting in settings_of(AuditSettings)}
    mistakes = [mistake for mistake in mistakes if mistake.name in names or mistake.name.startswith("AUDIT_")]
    _build_section(AuditSettings, values, mistakes, production=settings.is_production)
    if settings.audit.kek is None and settings.audit.encryption_enabled:
        mistakes.append(Mistake("AUDIT_KEK", "is missing; make one with: openssl rand -hex 32"))
    if settings.is_production:
        mistakes += [mistake for mistake in _relaxations_refused(settings) if mistake.name in names]
    if mistakes:
        raise SettingsError(mistakes)
    return settings.audit


def known_settings() -> list[Setting]:
    return [described for section in SECTIONS.values() for described in settings_of(section)]


@dataclass(frozen=True, slots=True)
class _Collected:
    """`values` by setting. `referred` are the variables of which the models file says that they hold a key."""

    values: dict[str, str]
    in_file: dict[str, str]
    mistakes: list[Mistake]
    models_file: Path | None
    referred: dict[str, SecretStr]
    credentials_directory: Path | None


def _collect(environ: Mapping[str, str] | None, env_file: Path | None) -> _Collected:
    environ = os.environ if environ is None else environ
    by_name = {name: setting for setting in known_settings() for name in (setting.name, *setting.synonyms)}
    mistakes: list[Mistake] = []
    values: dict[str, str] = {}
    given_as: dict[str, tuple[str, str]] = {}
    path = env_file or Path(environ.get("ENV_FILE", ".env"))
    given = dotenv_values(path, interpolate=False) if path.is_file() else {}
    in_file = {name: value for name, value in given.items() if value is not None}
    if len(in_file) < len(given):
        # Not quoted: it may be the second line of a secret.
        mistakes.append(Mistake(str(path), "holds a line that is no NAME=value"))
    directory = environ.get("CREDENTIALS_DIRECTORY")
    credentials = _credentials(directory, by_name)
    models_file = _models_file((in_file, credentials, environ))
    referred = _referred_to(models_file)
    mistakes += [
        _unknown(name, by_name, f"in {path}")
        for name, value in in_file.items()
        if name not in by_name
        and name not in _FOREIGN
        and name not in referred
        and (name not in NOT_YET or _is_promised(name, value))
    ]
    told = {mistake.name for mistake in mistakes}
    mistakes += [
        _unknown(name, by_name, "in the environment")
        for name, value in environ.items()
        if name not in by_name
        and name not in told
        and name not in referred
        and (_is_promised(name, value) or (name not in NOT_YET and _near_miss(name, by_name)))
    ]
    for source in (in_file, credentials, environ):
        seen_here: dict[str, tuple[str, str]] = {}
        for name, setting in by_name.items():
            if not (value := source.get(name, "").strip()):
                continue
            if isinstance(setting.default, bool):
                value = _SWITCHES.get(value.lower(), value)
            if setting.name in seen_here and seen_here[setting.name][1] != value:
                other = seen_here[setting.name][0]
                mistakes.append(Mistake(name, f"contradicts {other}, which means the same; set only one of them"))
            seen_here[setting.name] = (name, value)
            values[setting.name] = value
        given_as.update(seen_here)
    held: dict[str, SecretStr] = {}
    keys = {
        name
        for setting in settings_of(UpstreamSettings)
        if setting.secret
        for name in (setting.name, *setting.synonyms)
    }
    for name in referred:
        # Of our own settings only providers' keys: no other secret of ours is for a provider.
        own = by_name.get(name)
        value = values.get(own.name, "") if own else environ.get(name) or in_file.get(name, "")
        if value.strip() and (own is None or name in keys):
            held[name] = SecretStr(value.strip())
    return _Collected(values, in_file, mistakes, models_file, held, Path(directory) if directory else None)


def _models_file(sources: Iterable[Mapping[str, str]]) -> Path | None:
    """MODELS_FILE as the last source has it, which must be there; else the usual place, if there is something."""
    said = [given for source in sources if (given := source.get("MODELS_FILE", "").strip())]
    if said:
        return None if said[-1].lower() == NONE else Path(said[-1]).absolute()
    return _MODELS_FILE.absolute() if os.path.lexists(_MODELS_FILE) else None


def _referred_to(models_file: Path | None) -> frozenset[str]:
    """The variables that stand in the file as `env:NAME`: nobody's misspelling. Whoever reads it whole tells what is wrong."""
    if models_file is None:
        return frozenset()
    try:
        with models_file.open(encoding="utf-8", errors="replace") as opened:
            return frozenset(_REFERENCE.findall(opened.read(_MODELS_FILE_BYTES_MAX)))
    except OSError:
        return frozenset()


def _credentials(directory: str | None, by_name: Mapping[str, Setting]) -> dict[str, str]:
    """systemd's LoadCredential= files, named like the setting in lower case (systemd.exec(5))."""
    if not directory:
        return {}
    found = {}
    for name in by_name:
        for written in (name.lower(), name):
            file = credential_file(Path(directory), written)
            if file.is_file():
                found[name] = file.read_text(encoding="utf-8").strip()
                break
    return found


def credential_file(directory: Path, name: str) -> Path:
    """Where the credential `name` lies: `LoadCredential=credentials:/a/directory` makes it `credentials_name` (systemd.exec(5))."""
    file = directory / name
    return file if file.exists() else directory / f"{_CREDENTIALS_PREFIX}{name}"


def _unknown(name: str, by_name: Mapping[str, Setting], where: str) -> Mistake:
    if name in NOT_YET:
        return Mistake(name, f"has no effect in this release, so it is refused {where}: {NOT_YET[name]}")
    near = _near_miss(name, by_name)
    return Mistake(
        name, f"is not a setting ({where})" + (f"; did you mean {near}?" if near else "; see docs/configuration.md")
    )


def _is_promised(name: str, value: str) -> bool:
    """Whether `name=value` asks for something that is not there yet; switching it off asks for nothing."""
    return name in NOT_YET and _SWITCHES.get(value.strip().lower()) != "false"


def _near_miss(name: str, by_name: Mapping[str, Setting]) -> str | None:
    """A known name within one edit (two from 12 characters on). Short names are left alone: HOST is not POST."""
    if len(name) < _NEAR_FROM or not name.isupper():
        return None
    allowed = 2 if len(name) >= _TWO_EDITS_FROM else 1
    best = min(by_name, key=lambda known: _edits(name, known, allowed))
    return best if _edits(name, best, allowed) <= allowed else None


def _edits(left: str, right: str, enough: int) -> int:
    """Optimal string alignment distance; anything over `enough` may come back as `enough + 1`."""
    if abs(len(left) - len(right)) > enough:
        return enough + 1
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _build(values: Mapping[str, str], mistakes: list[Mistake]) -> Settings:
    profile = values.get("FLASK_ENV", "embedded").lower()
    if profile in {"development", "testing", "embedded"}:
        profile = "embedded"
    values = {**values, "FLASK_ENV": profile}
    production = profile == "production"
    built = {
        name: _build_section(section, values, mistakes, production=production) for name, section in SECTIONS.items()
    }
    settings = Settings.model_validate(built)
    return _with_derived_defaults(settings, values)


def _build_section(
    section: type[Section], values: Mapping[str, str], mistakes: list[Mistake], *, production: bool
) -> Section:
    given: dict[str, object] = {}
    names: dict[str, str] = {}
    for described in settings_of(section):
        names[described.field] = described.name
        if described.name in values:
            given[described.field] = _split(section, described.field, values[described.name])
        elif production and described.production != described.default:
            given[described.field] = described.production
    try:
        return section.model_validate(given)
    except ValidationError as error:
        wrong = set()
        for item in error.errors(include_url=False, include_input=False, include_context=False):
            field = str(item["loc"][0])
            wrong.add(field)
            mistakes.append(Mistake(names[field], item["msg"][:1].lower() + item["msg"][1:]))
        return section.model_validate({field: value for field, value in given.items() if field not in wrong})


def _split(section: type[Section], field: str, value: str) -> object:
    annotation = section.model_fields[field].annotation
    if value.lower() == NONE and annotation is not str:
        # A word for "nothing", since an empty value counts as not set and takes the profile's default.
        if get_origin(annotation) is tuple:
            return ()
        if NoneType in get_args(annotation):
            return None
    if get_origin(annotation) is tuple and get_args(annotation)[0] is str:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if annotation is bool:
        return value.lower()
    return value


def _with_derived_defaults(settings: Settings, values: Mapping[str, str]) -> Settings:
    """Paths that hang on INSTANCE_DIR, limits that hang on the origin's pair, and a URL in one form."""
    instance = settings.server.instance_directory.absolute()
    audit: dict[str, object] = {
        "directory": (settings.audit.directory if "AUDIT_DIR" in values else instance / "audit").absolute(),
        "keys_directory": (
            settings.audit.keys_directory if "AUDIT_KEYS_DIR" in values else instance / "audit-keys"
        ).absolute(),
        "socket": (settings.audit.socket if "AUDIT_SOCKET" in values else instance / "run" / "audit.sock").absolute(),
        "fallback_directory": settings.audit.fallback_directory and settings.audit.fallback_directory.absolute(),
        "backup_directory": (settings.audit.backup_directory or instance / "audit-backup").absolute(),
        "backup_keys_directory": (settings.audit.backup_keys_directory or instance / "audit-keys-backup").absolute(),
    }
    url = values.get("DATABASE_URL") or f"sqlite:///{instance / 'app.db'}"
    telemetry: dict[str, object] = {}
    if "LOG_DIR" not in values:
        telemetry["log_directory"] = instance / "log"
    if settings.server.debug:
        telemetry["log_level"] = "DEBUG"
    throttling: dict[str, object] = {"workers": settings.server.workers}
    return settings.model_copy(
        update={
            "server": settings.server.model_copy(update={"instance_directory": instance}),
            "audit": settings.audit.model_copy(update=audit),
            "database": settings.database.model_copy(update={"url": SecretStr(normalise_database_url(url))}),
            "telemetry": _updated(settings.telemetry, telemetry),
            "throttling": settings.throttling.model_copy(update=throttling),
        }
    )


def _updated(section: TelemetrySettings, changes: dict[str, object]) -> TelemetrySettings:
    return section.model_copy(update=changes)


def _contradictions(settings: Settings) -> list[Mistake]:
    found: list[Mistake] = []
    server: ServerSettings = settings.server
    database = settings.database.url.get_secret_value()
    if not database.startswith(("sqlite:", "postgresql+psycopg2:")):
        found.append(
            Mistake("DATABASE_URL", "names neither PostgreSQL nor SQLite; use postgresql://user:password@host/name")
        )
    if server.workers > 1:
        if settings.redis.url is None:
            found.append(
                Mistake(
                    "REDIS_URL",
                    f"is missing, and {server.workers} workers can't share limits without Redis; set it or WORKERS=1",
                )
            )
        if database.startswith("sqlite:"):
            found.append(
                Mistake(
                    "DATABASE_URL",
                    f"is SQLite, which serves one worker; set PostgreSQL or WORKERS=1 (now {server.workers})",
                )
            )
    if settings.redis.url is not None and not settings.redis.url.get_secret_value().startswith(
        ("redis://", "rediss://", "unix://")
    ):
        found.append(Mistake("REDIS_URL", "must start with redis://, rediss:// or unix://"))
    if server.bind is not None and not server.bind.startswith("unix:/"):
        found.append(Mistake("BIND", "must be unix:/absolute/path; for TCP use HOST and PORT"))
    url = settings.upstream.api_url
    if url is not None and not url.startswith(("https://", "http://")):
        found.append(Mistake("LLM_API_URL", "must start with https:// or http://"))
    upstream = settings.upstream
    found += _contradictory_providers(upstream)
    longest_s = settings.limits.body_timeout_s + upstream.total_timeout_s
    if settings.throttling.slot_ttl_s < longest_s:
        found.append(
            Mistake(
                "IN_FLIGHT_TTL_S",
                f"is less than a request may take ({longest_s:g} s: BODY_TIMEOUT_S and UPSTREAM_TOTAL_TIMEOUT_S)",
            )
        )
    if settings.identity.mfa_method.lower() != "totp":
        found.append(
            Mistake(
                "MFA_METHOD",
                "must be totp: codes sent by SMS or e-mail can be read on their way and phished in bulk "
                "(NIST SP 800-63B-4 restricts the one and forbids the other), so they are not offered",
            )
        )
    if settings.throttling.rate_window_s is not None and settings.throttling.rate_requests is None:
        found.append(Mistake("RATE_LIMIT_WINDOW", "is set without RATE_LIMIT_REQUESTS"))
    for name, secret in (
        ("SECRET_KEY", settings.secrets.secret_key),
        ("ENCRYPTION_KEY", settings.secrets.encryption_key),
    ):
        if secret is None:
            found.append(Mistake(name, "is missing; make one with: openssl rand -hex 32"))
        elif settings.is_production and (weakness := weakness_of(secret.get_secret_value())):
            found.append(Mistake(name, f"{weakness}; make one with: openssl rand -hex 32"))
    if settings.is_production:
        found += _relaxations_refused(settings)
    return found


def _contradictory_providers(upstream: UpstreamSettings) -> list[Mistake]:
    found = []
    named = len(upstream.keys_by_kind()) + (upstream.api_url is not None)
    alone = named <= 1 and upstream.models_file is None
    if alone and upstream.default_model and upstream.models and upstream.default_model not in upstream.models:
        found.append(Mistake("DEFAULT_MODEL", "is not among LLM_MODELS"))
    if upstream.models and upstream.api_url is None and named > 1:
        found.append(
            Mistake("LLM_MODELS", "can't be told apart by provider: set LLM_API_URL, or name models in MODELS_FILE")
        )
    if upstream.azure_api_key is not None and upstream.azure_endpoint is None:
        found.append(Mistake("AZURE_OPENAI_ENDPOINT", "is missing, and AZURE_OPENAI_API_KEY does not say where to go"))
    if upstream.azure_endpoint is not None:
        if upstream.azure_api_key is None and "AZURE_OPENAI_API_KEY" not in upstream.referred:
            found.append(Mistake("AZURE_OPENAI_ENDPOINT", "is set without AZURE_OPENAI_API_KEY"))
        if not upstream.azure_endpoint.startswith(("https://", "http://")):
            found.append(Mistake("AZURE_OPENAI_ENDPOINT", "must start with https:// or http://"))
    elif upstream.azure_api_version is not None:
        found.append(Mistake("AZURE_OPENAI_API_VERSION", "is set without AZURE_OPENAI_ENDPOINT"))
    return found


def _relaxations_refused(settings: Settings) -> list[Mistake]:
    refused = [Mistake(name, f"{problem}, which production refuses") for name, problem in relaxed_settings(settings)]
    upstream = settings.upstream
    for name, url, key_name, key in (
        ("LLM_API_URL", upstream.api_url, "LLM_API_KEY", upstream.api_key),
        ("AZURE_OPENAI_ENDPOINT", upstream.azure_endpoint, "AZURE_OPENAI_API_KEY", upstream.azure_api_key),
    ):
        if key is not None and crosses_in_clear(url or ""):
            refused.append(Mistake(name, f"is http, and {key_name} would cross the network in clear; use https"))
    if not settings.upstream.names_a_provider:
        refused.append(
            Mistake(
                "LLM_API_URL",
                "is missing, and so are every provider's key and MODELS_FILE; production does not route to the demo model",
            )
        )
    return refused


def crosses_in_clear(url: str) -> bool:
    """True for what is sent to `url` over a network without TLS."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK


def relaxed_settings(settings: Settings) -> list[tuple[str, str]]:
    """Every setting that is weaker than the product would have it, with a sentence each."""
    relaxed = []
    if settings.server.debug:
        relaxed.append(("DEBUG", "is on"))
    if not settings.upstream.ssl_verify:
        relaxed.append(("SSL_VERIFY", "is false: the provider's certificate is not checked"))
    if not settings.identity.authentication_required:
        relaxed.append(("AUTHENTICATION_REQUIRED", "is false: anybody may ask"))
    if settings.identity.mfa_required == "none":
        relaxed.append(("MFA_REQUIRED", "is none: administrators sign in with a password alone"))
    if not settings.audit.encryption_enabled:
        relaxed.append(("AUDIT_ENCRYPTION_ENABLED", "is false: prompts stand readable in the audit log"))
    return relaxed
