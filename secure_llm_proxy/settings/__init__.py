"""Settings: one frozen section per room, all mistakes reported together, by variable name.

For: every constructor. Takes: the environment, `.env`, systemd's credentials directory. Gives: `Settings`.
When it fails: `SettingsError` names every mistake at once, and nothing starts. Source: DESIGN, operator contract.
"""

from secure_llm_proxy.settings.in_force import put_in_force, settings_in_force
from secure_llm_proxy.settings.loading import (
    LoadedSettings,
    SettingsError,
    load_audit_writer_settings,
    load_settings,
    reload_settings,
    start_settings,
)
from secure_llm_proxy.settings.registry import Setting, settings_of
from secure_llm_proxy.settings.sections import (
    SECTIONS,
    AdmissionSettings,
    AuditSettings,
    DatabaseSettings,
    IdentitySettings,
    LimitSettings,
    RedisSettings,
    SecretSettings,
    ServerSettings,
    Settings,
    TelemetrySettings,
    ThrottlingSettings,
    UpstreamSettings,
)

__all__ = [
    "SECTIONS",
    "AdmissionSettings",
    "AuditSettings",
    "DatabaseSettings",
    "IdentitySettings",
    "LimitSettings",
    "LoadedSettings",
    "RedisSettings",
    "SecretSettings",
    "ServerSettings",
    "Setting",
    "Settings",
    "SettingsError",
    "TelemetrySettings",
    "ThrottlingSettings",
    "UpstreamSettings",
    "load_audit_writer_settings",
    "load_settings",
    "put_in_force",
    "reload_settings",
    "settings_in_force",
    "settings_of",
    "start_settings",
]
