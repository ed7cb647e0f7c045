"""The settings: the strict profile, nothing relaxed, no demo, and secrets where only their service reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown, warning
from secure_llm_proxy.cli.host.places import Places, variables_in
from secure_llm_proxy.settings import Settings
from secure_llm_proxy.settings.loading import known_settings, relaxed_settings

_PASSWORD_IN_URL = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_PRIVATE_LEAST = ("secret_key", "encryption_key", "database_url")


def settings_checks(settings: Settings) -> Iterator[Check]:
    if settings.is_production:
        yield ok("profile", "production")
    else:
        yield failed("profile", settings.server.profile, "set FLASK_ENV=production in /etc/secure_llm_proxy/env")
    relaxed = relaxed_settings(settings)
    if not relaxed:
        yield ok("relaxed settings", "none")
    for name, why in relaxed:
        yield failed(f"setting {name}", why, f"remove {name}; production refuses it")
    if settings.upstream.demo_url is not None or not settings.upstream.names_a_provider:
        fix = "remove DEMO_UPSTREAM_URL, and name a provider: LLM_API_URL with LLM_API_KEY, a provider's key, or MODELS_FILE"
        yield failed("demo model", "it may answer instead of a provider", fix)
    else:
        yield ok("demo model", "not used")


def credential_checks(places: Places) -> Iterator[Check]:
    """Secrets lie in a file each, for LoadCredential=, and not in what `systemctl show` and /proc/PID/environ tell."""
    secret = {name for setting in known_settings() if setting.secret for name in (setting.name, *setting.synonyms)}
    credentials = places.settings / "credentials"
    for name in ("env", "audit.env"):
        path = places.settings / name
        yield _environment_file(path, secret, credentials)
    try:
        there = {entry.name.lower() for entry in credentials.iterdir() if entry.is_file()}
        audit = {entry.name.lower() for entry in (places.settings / "audit-credentials").iterdir() if entry.is_file()}
    except FileNotFoundError as error:
        yield failed("credentials", f"there is no folder {error.filename}", "run scripts/install again")
        return
    missing = [each for each in _PRIVATE_LEAST if each not in there]
    if missing:
        yield failed(
            "credentials", f"missing: {', '.join(missing)}", f"put each into a file of its own in {credentials}"
        )
    elif "audit_kek" in there:
        fix = f"move it to {places.settings}/audit-credentials: the web service must not have the audit log's key"
        yield failed("credentials", f"{credentials}/audit_kek is handed to the web service", fix)
    elif "audit_kek" not in audit:
        fix = f"put AUDIT_KEK into {places.settings}/audit-credentials/audit_kek"
        yield warning("credentials", "the audit writer's key is no credential", fix)
    else:
        yield ok("credentials", f"{len(there)} for the web service, {len(audit)} for the audit writer")


def _environment_file(path: Path, secret: set[str], credentials: Path) -> Check:
    what = f"secrets in {path.name}"
    try:
        told = variables_in(path)
    except FileNotFoundError:
        return failed(what, f"there is no {path}", "run scripts/install again")
    except PermissionError:
        return unknown(what, f"{path} may not be read by this user", "run this as root")
    # A URL without a password in it says only where something is.
    held = sorted(
        name
        for name, value in told.items()
        if value and name in secret and ("://" not in value or _PASSWORD_IN_URL.match(value))
    )
    if held:
        return failed(
            what, f"it holds {', '.join(held)}", f"move each into a file in {credentials}, named in lower case"
        )
    return ok(what, "none")
