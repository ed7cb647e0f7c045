"""Going on with a log whose signing key is lost, as after a restore: the owner signs the next one, and verifiers are told."""

from __future__ import annotations

import os

from secure_llm_proxy.audit.appender import Appender
from secure_llm_proxy.audit.epoch import EpochKeys, keks_of
from secure_llm_proxy.audit.genesis import Genesis, find_host_id, lock_log, owner_key_from, read_genesis
from secure_llm_proxy.audit.second_directory import open_directories
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings


def restart_log(settings: AuditSettings, owner_key: str, *, force: bool = False) -> Genesis:
    """Afterwards the log ends with a segment in which the owner puts a new epoch key in force; the next writer goes on with it.

    The writer must not run. Raises `OperatorError` when it does, when `owner_key` (base64) is not this log's owner's, and,
    without `force`, when the key in force is there: nobody needs to be told of a loss that was none.
    """
    genesis = read_genesis(settings.directory / find_host_id(settings))
    owner = owner_key_from(owner_key, genesis)
    keks = keks_of(settings)
    lock = lock_log(genesis.directory)
    try:
        log = Appender(
            genesis,
            keks[0] if settings.encryption_enabled and keks else None,
            EpochKeys.of(settings),
            segment_bytes_max=settings.segment_bytes_max,
            segment_age_s=settings.segment_age_s,
            report=_tell_nobody,
            second=open_directories(settings, genesis, _tell_nobody).second,
        )
        log.recover()
        if not force and _has_its_key(log):
            raise OperatorError(
                "The log's signing key is there, so nothing was restarted; --force does it all the same."
            )
        log.restart(owner)
    except OSError as error:
        raise OperatorError(f"The log could not be restarted: {error.strerror} ({error.filename}).") from None
    finally:
        os.close(lock)
    return genesis


def _tell_nobody(_event: str, **_fields: object) -> None:
    """The command tells its own end."""


def _has_its_key(log: Appender) -> bool:
    try:
        log.take_epoch_key()
    except OperatorError:
        return False
    return True
