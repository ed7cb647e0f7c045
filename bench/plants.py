"""What a deployment has after years, made in minutes by the product's own code: API keys in its database, sealed segments."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import orjson
from sqlalchemy import insert
from sqlalchemy.orm import Session

from secure_llm_proxy.audit.appender import Appender, Entry
from secure_llm_proxy.audit.epoch import EpochKeys
from secure_llm_proxy.audit.genesis import read_genesis
from secure_llm_proxy.audit.seal import KeyEncryptionKey
from secure_llm_proxy.audit.segments import host_directory
from secure_llm_proxy.foundation.clock import SystemClock
from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.identifiers import new_exchange_id, new_record_id, new_user_id
from secure_llm_proxy.foundation.secret_values import derive_key
from secure_llm_proxy.identity import DEFAULT_ORGANISATION_ID, DEFAULT_PROJECT_ID
from secure_llm_proxy.identity.accounts import UserStatus
from secure_llm_proxy.identity.api_keys import digest_of, draw_api_key
from secure_llm_proxy.identity.models import ApiKeyRow, UserRow
from secure_llm_proxy.identity.names import Role
from secure_llm_proxy.settings import load_settings
from secure_llm_proxy.vocabulary.caller import SCOPE_CHAT

_KEYS_PER_USER = 5
_ROWS_AT_ONCE = 5_000
_GIB = 2**30
_BODY_BYTES = 16_384
_PAIRS_AT_ONCE = 32
# What stays free on the disk when the log is there.
_SPARE_GIB = 5.0
_WORKER = "be" * 16


def plant_keys(environment: Mapping[str, str], count: int) -> list[str]:
    """`count` working keys of new users, five each, in the database of the product with this environment; the keys."""
    settings = load_settings({**environment, "ENV_FILE": os.devnull})
    secret = settings.secrets.secret_key
    assert secret is not None
    pepper = derive_key(secret.get_secret_value(), "slp/key-pepper")
    now = SystemClock().now()
    users, rows, keys = [], [], []
    for number in range(count):
        if number % _KEYS_PER_USER == 0:
            user_id = new_user_id()
            name = f"planted-{user_id.lower()}"
            users.append(
                {
                    "id": user_id,
                    "username": name,
                    "username_normalised": name,
                    "email": f"{name}@example.org",
                    "role": Role.MEMBER.value,
                    "status": UserStatus.ACTIVE.value,
                    "organisation_id": DEFAULT_ORGANISATION_ID,
                    "created_at": now,
                    "updated_at": now,
                }
            )
        drawn = draw_api_key()
        keys.append(drawn.secret)
        rows.append(
            {
                "id": drawn.id,
                "kid": drawn.kid,
                "kind": "live",
                "user_id": users[-1]["id"],
                "project_id": DEFAULT_PROJECT_ID,
                "name": f"key-{number}",
                "digest": digest_of(pepper, drawn.secret),
                "scopes": [SCOPE_CHAT],
                "created_at": now,
                "expires_at": now + timedelta(days=90),
            }
        )

    def put(session: Session) -> None:
        for model, all_of_it in ((UserRow, users), (ApiKeyRow, rows)):
            for begin in range(0, len(all_of_it), _ROWS_AT_ONCE):
                session.execute(insert(model), all_of_it[begin : begin + _ROWS_AT_ONCE])

    database = Database(settings.database)
    try:
        database.run(put)
    finally:
        database.close()
    return keys


class DiskTooSmall(Exception):
    """Says how much is free and how much was asked for."""


def require_space(folder: Path, gib: float) -> None:
    """Raises `DiskTooSmall` unless `gib` fit and some space is left."""
    free_gib = shutil.disk_usage(folder).free / _GIB
    if free_gib < gib + _SPARE_GIB:
        raise DiskTooSmall(f"{free_gib:.1f} GiB are free in {folder}, {gib:g} and {_SPARE_GIB:g} to spare are needed")


def plant_audit_log(environment: Mapping[str, str], instance: Path, gib: float) -> None:
    """Closed segments of `gib` GiB in the log of the product with this environment, which does not run.

    Written by the writer's own `Appender`: sealed, chained, each exchange with start and end, so that the log verifies.
    Bodies are 16 KiB, larger than the load's, or it would take hours. Raises `DiskTooSmall`.
    """
    require_space(instance, gib)
    directory = host_directory(Path(environment.get("AUDIT_DIR", str(instance / "audit"))))
    settings = load_settings({**environment, "ENV_FILE": os.devnull}).audit
    kek = KeyEncryptionKey.from_text(environment["AUDIT_KEK"])
    log = Appender(
        read_genesis(directory),
        kek,
        EpochKeys(settings.keys_directory, [kek]),
        segment_bytes_max=settings.segment_bytes_max,
        segment_age_s=settings.segment_age_s,
        report=lambda *_, **__: None,
    )
    log.recover()
    log.take_epoch_key()
    log.open_segment()
    fill_log(log, gib)


def fill_log(log: Appender, gib: float) -> None:
    """Afterwards `log`, which is open, has taken `gib` GiB of exchanges, and is closed."""
    body = os.urandom(_BODY_BYTES)
    counter, written, whole = 0, 0, gib * _GIB
    while written < whole:
        batch = []
        for _ in range(_PAIRS_AT_ONCE):
            exchange, start, end = new_exchange_id(), new_record_id(), new_record_id()
            began = {"ty": "llm.start", "id": start, "rid": exchange, "mdl": "gpt-4o-mini"}
            ended = {"ty": "llm.end", "id": end, "rid": exchange, "sid": start, "st": "complete"}
            batch += [
                Entry(_WORKER, counter + 1, orjson.dumps(began), body, "llm.start", start, exchange, None),
                Entry(_WORKER, counter + 2, orjson.dumps(ended), body, "llm.end", end, exchange, start),
            ]
            counter += 2
        log.commit(batch)
        # base64 makes four of three
        written += len(batch) * (_BODY_BYTES * 4 // 3)
        log.keep_rhythm()
    log.close_segment("stop")
