"""The settings that a running server goes by: its master loads them, its workers are forked with them.

A worker that is started later, in place of one that died, has them as well, whatever the files say by then. gunicorn gives
`gunicorn.conf.py` and `app.py` nothing to hand over but the memory that a fork shares: hence a module's variable.
"""

from __future__ import annotations

from secure_llm_proxy.settings.loading import LoadedSettings, start_settings

_held: list[LoadedSettings] = []


def settings_in_force() -> LoadedSettings:
    """Those of this process or of the one that forked it; loaded when it has none yet. Raises `SettingsError` then."""
    if not _held:
        _held.append(start_settings())
    return _held[0]


def put_in_force(settings: LoadedSettings) -> None:
    _held[:] = [settings]
