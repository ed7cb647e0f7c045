"""Settings: one frozen section per room, all mistakes reported together, by variable name.

For: every constructor. Takes: the environment, `.env`, systemd's credentials directory. Gives: `Settings`.
When it fails: `SettingsError` names every mistake at once, and nothing starts. Source: DESIGN, operator contract.
"""

from secure_llm_proxy.settings.loading import (
    SettingsError,
    load_audit_writer_settings,
    load_settings,
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
    "settings_of",
]
