"""Audit logs for tests: settings in a temporary directory, events, a writer process, a log made in process."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson
from pydantic import SecretStr

from secure_llm_proxy.audit import BodyOpener, Genesis, VerificationReport, initialise, log_lines, verify
from secure_llm_proxy.audit.appender import Appender, Disk, Entry, Rhythm
from secure_llm_proxy.audit.epoch import EpochKeys
from secure_llm_proxy.audit.format import RecordLine, subject_in
from secure_llm_proxy.audit.keystore import KeyStore
from secure_llm_proxy.audit.notes import Checkpoint
from secure_llm_proxy.audit.running_writer import listens
from secure_llm_proxy.audit.seal import KeyEncryptionKey
from secure_llm_proxy.foundation.identifiers import new_record_id
from secure_llm_proxy.settings import AuditSettings
from secure_llm_proxy.settings.registry import settings_of
from secure_llm_proxy.vocabulary.audit import AuditEvent, ClearValue
from secure_llm_proxy.vocabulary.events import AuditType, EventName

KEK = "5a" * 32
WORKER = "11" * 16
EXCHANGE = "exc_01KAHG0000000000000000TEST"
WAIT_S = 30.0
REPOSITORY = Path(__file__).resolve().parents[2]


def audit_settings(directory: Path, **overrides: object) -> AuditSettings:
    values: dict[str, object] = {
        "directory": directory / "audit",
        "keys_directory": directory / "audit-keys",
        "socket": directory / "w.sock",
        "kek": KEK,
        "host_id": "host",
        # a busy disk is no fault
        "patience_s": WAIT_S,
    }
    return AuditSettings(**(values | overrides))  # type: ignore[arg-type]


def event(
    type_: AuditType = AuditType.REFUSED,
    *,
    body: bytes = b"the body",
    exchange: str = EXCHANGE,
    name: EventName | None = None,
    **clear: ClearValue,
) -> AuditEvent:
    return AuditEvent(new_record_id(), type_, exchange, name, clear, body)


def start_event() -> AuditEvent:
    return event(AuditType.LLM_START, name=EventName.CHAT_REQUEST, mdl="demo")


def end_event(start: AuditEvent) -> AuditEvent:
    return event(AuditType.LLM_END, exchange=start.exchange_id, sid=start.id, st="complete")


def entry(counter: int, *, kind: str = "llm.refused", body: bytes = b"body", **clear: ClearValue) -> Entry:
    """A record as the writer's loop hands it to the log."""
    identifier = f"R{counter:04d}"
    members: dict[str, ClearValue] = {"ty": kind, "id": identifier, "rid": EXCHANGE, **clear}
    start = clear.get("sid")
    return Entry(
        WORKER,
        counter,
        orjson.dumps(members),
        body,
        kind,
        identifier,
        EXCHANGE,
        start if isinstance(start, str) else None,
        subject_in(members),
    )


class Reports:
    """What the log tells its operator."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def __call__(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def appender(
    genesis: Genesis,
    *,
    disk: Disk | None = None,
    kek: str | None = KEK,
    now_ns: Callable[[], int] = time.time_ns,
    reports: Reports | None = None,
    segment_bytes_max: int = 1 << 20,
    rhythm: Rhythm | None = None,
    on_checkpoint: Callable[[Checkpoint, str], None] | None = None,
    epoch_key: bool = True,
    key_store: KeyStore | None = None,
    second: Path | None = None,
    is_short: Callable[[Path], bool] | None = None,
) -> Appender:
    """A log that has recovered and has no segment open yet; without `epoch_key`, one that can't sign."""
    key = KeyEncryptionKey.from_text(kek) if kek else None
    made = Appender(
        genesis,
        key,
        EpochKeys(genesis.directory.parent.parent / "audit-keys", [key] if key else []),
        segment_bytes_max=segment_bytes_max,
        segment_age_s=3600.0,
        report=reports or Reports(),
        second=second,
        is_short=is_short,
        disk=disk,
        now_ns=now_ns,
        rhythm=rhythm,
        on_checkpoint=on_checkpoint,
        key_store=key_store,
    )
    made.recover()
    if epoch_key:
        made.take_epoch_key()
    return made


def write_log(directory: Path, segments: Sequence[Sequence[Entry]] | None = None) -> Genesis:
    """A closed log: one exchange and a refusal in the first segment, a refusal in the second, unless said otherwise."""
    genesis = initialise(audit_settings(directory))
    for batch in segments or (
        [entry(1, kind="llm.start"), entry(2, kind="llm.end", sid="R0001", st="complete"), entry(3)],
        [entry(4)],
    ):
        log = appender(genesis)
        log.open_segment()
        log.commit(batch)
        log.close_segment("stop")
    return genesis


def check(settings: AuditSettings, *, kek: str | None = KEK) -> VerificationReport:
    opener = BodyOpener(kek, keys_directory=settings.keys_directory) if kek else None
    return verify(settings.directory, genesis_public_key=None, opener=opener, also=settings.fallback_directory)


def records_in(directory: Path, *, also: Path | None = None) -> list[RecordLine]:
    return [item.line for item in log_lines(directory, also=also) if isinstance(item.line, RecordLine)]


def environment_of(settings: AuditSettings) -> dict[str, str]:
    """Every setting of the section under its name; what is None is left out."""
    told = {}
    for described in settings_of(AuditSettings):
        value = getattr(settings, described.field)
        if value is not None:
            told[described.name] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return told


class WriterProcess:
    """The real writer, started as the product starts it, with its settings in the environment."""

    def __init__(self, settings: AuditSettings, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self._environment = environment or {}
        # What the writer is started by: a program that hands over to it, or nothing.
        self.launcher: tuple[str, ...] = ()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when it listens."""
        environment = {
            "PATH": os.environ["PATH"],
            "ENV_FILE": os.devnull,
            **environment_of(self.settings),
            **self._environment,
        }
        with self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*self.launcher, sys.executable, "-m", "secure_llm_proxy.audit"],
                cwd=REPOSITORY,
                env=environment,
                stderr=stderr,
            )
        process = self._process
        wait_until(lambda: listens(self.settings) or process.poll() is not None, self.said)
        assert process.poll() is None, self.said()

    def said(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def limit_file_size(self, size: int) -> None:
        """From now on no file of the writer's grows beyond `size` bytes: what a full disk looks like to it."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(WAIT_S)

    def stop(self) -> int:
        """Ends it in order and returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(WAIT_S)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()


@contextlib.contextmanager
def writer_process(settings: AuditSettings, environment: Mapping[str, str] | None = None) -> Iterator[WriterProcess]:
    """A running writer over a fresh log; ended with the block, however it ends. `environment` is added to its own."""
    initialise(settings)
    process = WriterProcess(settings, settings.directory.parent / "writer.log", environment)
    try:
        process.start()
        yield process
    finally:
        process.end()


def wait_until(
    fact: Callable[[], bool], story: Callable[[], str] = str, *, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return when `fact` holds; a generous deadline ends the test with `story`."""
    deadline = time.monotonic() + WAIT_S
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {WAIT_S:g} s\n{story()}")
        sleep(0.01)
