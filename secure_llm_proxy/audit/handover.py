"""Settings on their way from a process to its child: one JSON line on standard input, secrets and all, never a command line
or a file.
"""

from __future__ import annotations

import os

import orjson

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings


def settings_line(settings: AuditSettings) -> bytes:
    values = settings.model_dump(mode="json", exclude={"kek", "previous_keks"})
    for name, secret in (("kek", settings.kek), ("previous_keks", settings.previous_keks)):
        values[name] = secret and secret.get_secret_value()
    return orjson.dumps(values) + b"\n"


def settings_from_parent() -> AuditSettings:
    """What `settings_line` of the parent says; the rest of standard input is left, its end tells that the parent is gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise OperatorError("The parent of this process went away before it had said anything.")
        line += byte
    return AuditSettings(**orjson.loads(line))
