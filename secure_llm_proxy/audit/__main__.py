"""The audit writer's process: `python -m secure_llm_proxy.audit`.

Settings come from the environment; with `--parent`, the first line on standard input is a JSON object of the section's
values (made by `running_writer`), and the end of standard input ends the writer. Exit codes: 0 stopped, 2 refused to
start (one sentence on stderr says why).
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from secure_llm_proxy.audit.alarms import Alarms
from secure_llm_proxy.audit.anchors import Anchors
from secure_llm_proxy.audit.appender import Appender, Rhythm
from secure_llm_proxy.audit.backup import backup_of
from secure_llm_proxy.audit.blind_indexes import BlindIndexes
from secure_llm_proxy.audit.control import ControlDoor
from secure_llm_proxy.audit.epoch import EpochKeys
from secure_llm_proxy.audit.genesis import GenesisBroken, find_host_id, lock_log, read_genesis
from secure_llm_proxy.audit.handover import settings_from_parent
from secure_llm_proxy.audit.keeping import Keeper
from secure_llm_proxy.audit.key_care import KeyCare
from secure_llm_proxy.audit.keystore import KeyStore
from secure_llm_proxy.audit.reader_child import ReaderChild
from secure_llm_proxy.audit.retention import retention_of
from secure_llm_proxy.audit.room import Room
from secure_llm_proxy.audit.rooms import Rooms
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.audit.second_directory import open_directories, refuse_a_vanished_log
from secure_llm_proxy.audit.sinks import SecondSink, sink_of
from secure_llm_proxy.audit.state import StateFile
from secure_llm_proxy.audit.writer import StopRequest, Wake, Writer, listen, report
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings, SettingsError, load_audit_writer_settings

_REFUSED_TO_START = 2


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--parent"]):
        print("usage: python -m secure_llm_proxy.audit", file=sys.stderr)
        return _REFUSED_TO_START
    parent = 0 if arguments else None
    try:
        settings = _settings_of_parent() if arguments else load_audit_writer_settings()
        _serve(settings, parent)
    except (OperatorError, SettingsError) as error:
        print(error, file=sys.stderr)
        return _REFUSED_TO_START
    except OSError as error:
        print(f"The audit writer cannot start: {error.strerror or error} ({error.filename}).", file=sys.stderr)
        return _REFUSED_TO_START
    return 0


def _serve(settings: AuditSettings, parent: int | None) -> None:
    host = settings.directory / find_host_id(settings)
    refuse_a_vanished_log(settings, host)
    lock = lock_log(host)
    try:
        genesis = read_genesis(host)
    except GenesisBroken as error:
        raise OperatorError(f"The audit log in {host} has no valid root of trust: {error}.") from None
    ring = None
    if settings.encryption_enabled:
        ring = KeyRing.of(settings)
        if ring is None:
            raise OperatorError("AUDIT_KEK is missing, and the audit log is to be encrypted.")
    wake = Wake()
    anchors = Anchors.of(settings, host.name, wake=wake)
    second = sink_of(settings, host.name)
    epoch = EpochKeys.of(settings)
    # Not before the epoch key shows that this is the right key-encryption key.
    key_store = KeyStore.open(settings.keys_directory, ring) if ring and epoch.check() else None
    directories = open_directories(settings, genesis, report)
    room = Rooms([(directory, _room(directory, settings)) for directory in directories.all])
    appender = Appender(
        genesis,
        ring.current if ring else None,
        epoch,
        second=directories.second,
        is_short=room.is_short,
        segment_bytes_max=settings.segment_bytes_max,
        segment_age_s=settings.segment_age_s,
        rhythm=Rhythm(
            lines=settings.checkpoint_lines,
            dirty_s=settings.checkpoint_s,
            idle_s=settings.heartbeat_s,
            epoch_s=settings.epoch_s,
        ),
        report=report,
        key_store=key_store,
        on_checkpoint=anchors.offer,
    )
    backup = backup_of(settings, directories)
    keeper = Keeper(
        report,
        backup=backup,
        interval_s=settings.backup_interval_s,
        retention=retention_of(settings, directories, backup),
    )
    stop = StopRequest()
    appender.recover()
    appender.take_epoch_key()
    control = ControlDoor(
        listen(settings.control_address, _named("AUDIT_CONTROL_SOCKET", settings.control_socket), mode=0o600), report
    )
    reader = ReaderChild(
        settings, listen(settings.read_address, _named("AUDIT_READ_SOCKET", settings.read_socket)), report
    )
    # Last: who can reach this one finds the others.
    listener = listen(settings.socket)
    gc.freeze()
    report("writer_started", log=genesis.log, pid=os.getpid())
    indexes = BlindIndexes(key_store.index_key()) if key_store else None
    sink = None
    if second is not None:
        needed = settings.sink_policy == "all"
        sink = SecondSink(second, directories, name=settings.sink, needed=needed, report=report, wake=wake)
    writer = Writer(
        appender,
        listener,
        stop,
        orphan_grace_s=settings.orphan_grace_s,
        room=room,
        alarms=Alarms(report),
        anchors=anchors,
        state=StateFile(settings.state_path, genesis.log),
        wake=wake,
        sink=sink,
        parent=parent,
        reader=reader,
        indexes=indexes,
        keeper=keeper,
        control=control,
        key_care=KeyCare(key_store, ring, indexes),
    )
    try:
        writer.run()
    finally:
        keeper.stop()
    for path in (settings.socket, settings.read_address, settings.control_address):
        path.unlink(missing_ok=True)
    listener.close()
    if key_store is not None:
        # Whole in one file, without a write-ahead log beside it.
        key_store.close()
    report("writer_stopped")
    os.close(lock)


def _room(directory: Path, settings: AuditSettings) -> Room:
    return Room(
        directory,
        bytes_min=settings.free_bytes_min,
        percent_min=settings.free_percent_min,
        reserve_bytes=settings.reserve_bytes,
        report=report,
    )


def _named(name: str, given: Path | None) -> str:
    """How a socket is called in a sentence: who set none looks for the setting that its place comes from."""
    return name if given else f"{name} (beside AUDIT_SOCKET)"


def _settings_of_parent() -> AuditSettings:
    settings = settings_from_parent()
    if settings.kek is None and settings.encryption_enabled:
        # Web processes and commands never hold this key; the writer reads it for itself.
        own = load_audit_writer_settings()
        settings = settings.model_copy(update={"kek": own.kek, "previous_keks": own.previous_keks})
    return settings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
