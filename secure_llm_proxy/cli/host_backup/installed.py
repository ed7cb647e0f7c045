"""What is backed up: the settings of an installed host, or of an embedded instance, and the data that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values

from secure_llm_proxy.cli.host_backup.databases import BackedUpDatabase, database_of
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings, SettingsError, load_audit_writer_settings

ENV, AUDIT_ENV, MODELS = "env", "audit.env", "models.yaml"
CREDENTIALS, AUDIT_CREDENTIALS, TLS = "credentials", "audit-credentials", "tls"
RECIPIENT = "backup-recipient"
_FOLDERS = (CREDENTIALS, AUDIT_CREDENTIALS, TLS)
# LoadCredential=settings:/etc/secure_llm_proxy makes settings_env, settings_credentials_secret_key and so on of it.
_HANDED = "settings_"
_FILE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Installed:
    """`settings` are the files of settings and secrets by their names below the settings' folder; `values` what they say."""

    settings: Mapping[str, bytes]
    values: Mapping[str, str]
    instance: Path | None = None

    @property
    def database(self) -> BackedUpDatabase:
        url = self.values.get("DATABASE_URL", "").strip()
        if not url and self.instance is None:
            raise OperatorError("DATABASE_URL is nowhere: neither among the credentials nor in the settings.")
        return database_of(url or f"sqlite:///{self.instance}/app.db")

    @property
    def audit(self) -> AuditSettings:
        """With the key-encryption key. Raises `OperatorError`."""
        try:
            # Nothing from the folder that this happens to run in.
            return load_audit_writer_settings(self.values, env_file=Path(os.devnull))
        except SettingsError as error:
            raise OperatorError(str(error)) from None

    def secret(self, name: str) -> str:
        return self.values.get(name, "").strip()


def host_in(settings: Mapping[str, bytes]) -> Installed:
    """A host whose settings' folder holds these files."""
    values: dict[str, str] = {}
    for name in (ENV, AUDIT_ENV):
        if name in settings:
            values.update(_values_in(settings[name]))
    for path, content in settings.items():
        folder, _, name = path.partition("/")
        if folder in {CREDENTIALS, AUDIT_CREDENTIALS} and name:
            values[name.upper()] = content.decode("utf-8", "replace").strip()
    return Installed(settings, values)


def instance_in(directory: Path, settings: Mapping[str, bytes]) -> Installed:
    """An embedded instance: `scripts/run`'s folder of data, and its `.env`."""
    values = _values_in(settings[ENV]) if ENV in settings else {}
    return Installed(settings, {**values, "INSTANCE_DIR": str(directory.absolute())}, directory.absolute())


def installed_host(directory: Path) -> Installed:
    """The host whose settings lie in `directory`, or were handed over by systemd for it ($CREDENTIALS_DIRECTORY)."""
    handed = os.environ.get("CREDENTIALS_DIRECTORY")
    settings = _handed_in(Path(handed)) if handed else files_below(directory)
    if ENV not in settings and AUDIT_ENV not in settings:
        raise OperatorError(
            f"{directory} holds no settings of an installed host; scripts/install makes them. For an embedded instance say "
            "--instance DIR."
        )
    return host_in(settings)


def installed_instance(directory: Path, env_file: Path) -> Installed:
    settings = {}
    for name, path in ((ENV, env_file), (MODELS, env_file.parent / "config" / MODELS)):
        if path.is_file():
            settings[name] = _content_of(path)
    return instance_in(directory, settings)


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file of the settings' folder, and of the folders in it that we know. Links are left out, as systemd does."""
    found = {}
    try:
        for folder in ("", *_FOLDERS):
            place = directory / folder
            if not place.is_dir():
                continue
            for entry in sorted(place.iterdir()):
                if entry.is_file() and not entry.is_symlink() and not entry.name.startswith("."):
                    found[f"{folder}/{entry.name}" if folder else entry.name] = _content_of(entry)
    except OSError as error:
        raise OperatorError(f"The settings cannot be read: {error.strerror} ({error.filename}).") from None
    return found


def _handed_in(directory: Path) -> dict[str, bytes]:
    found = {}
    for entry in sorted(directory.iterdir()):
        if not entry.name.startswith(_HANDED):
            continue
        name = entry.name.removeprefix(_HANDED)
        for folder in _FOLDERS:
            if name.startswith(f"{folder}_"):
                name = f"{folder}/{name.removeprefix(folder + '_')}"
                break
        found[name] = _content_of(entry)
    return found


def _content_of(path: Path) -> bytes:
    content = path.read_bytes()
    if len(content) > _FILE_BYTES_MAX:
        raise OperatorError(f"{path} is larger than a file of settings can be; move it out of that folder.")
    return content


def _values_in(content: bytes) -> dict[str, str]:
    values = dotenv_values(stream=StringIO(content.decode("utf-8", "replace")), interpolate=False)
    return {name: value for name, value in values.items() if value is not None}
