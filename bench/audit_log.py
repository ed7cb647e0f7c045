"""`bench/audit`: what a durable record costs, on disk and in memory, alone and among many, in an empty log and in a large one."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from bench.audit_load import RecordRefused, WaitingClients
from bench.figures import percentile
from bench.plants import DiskTooSmall, fill_log, require_space
from bench.processes import Cores, CpuLedger, choose_cores, cpu_s, pss_mb, running_on
from bench.report import spread, table
from bench.side_by_side import folder_on_disk, machine, versions
from secure_llm_proxy.audit import initialise, verify
from secure_llm_proxy.settings import AuditSettings
from tests.support.audit_log import WriterProcess, appender, audit_settings

_PACED_PER_S = 1_000
_PACED_CLIENTS = 64
_WARM_UP_S = 0.5
_SYNC_COUNT = 500
_SYNC_BYTES = 3_072
_MEMORY = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it


@dataclass(frozen=True, slots=True)
class SyncFigures:
    """Appending 3 kB and fdatasync, over and over, by one process: what the place itself allows."""

    place: str
    round: int
    per_s: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class RecordFigures:
    """`clients` waiting records at a time. `paced`: a thousand a second and no more. `cpu_us` is the writer's, per record."""

    place: str
    present_gib: float
    round: int
    clients: int
    paced: bool
    records: int
    records_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class LogFigures:
    """The writer's start over what is present, its memory after the load, and verification of all of it afterwards."""

    place: str
    present_gib: float
    round: int
    start_s: float
    writer_mb: float
    lines: int
    lines_per_s: float
    mib_per_s: float
    cpu_us_per_line: float


@dataclass
class Results:
    began: str
    machine: Mapping[str, str]
    quick: bool
    body_bytes: int
    others_share: float = 0.0
    syncs: list[SyncFigures] = field(default_factory=list)
    records: list[RecordFigures] = field(default_factory=list)
    logs: list[LogFigures] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Case:
    place: str
    folder: Path
    present_gib: float
    clients: Sequence[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 invalid, 2 usage or something missing. A bar that is missed is told, and no error."""
    given = _parse(arguments)
    try:
        results = measure(given)
    except DiskTooSmall as error:
        print(error, file=sys.stderr)
        return 2
    print(report(results))
    if given.json is not None:
        told = {**asdict(results), "bars": [asdict(bar) for bar in bars(results)], "valid": not results.problems}
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if results.problems else 0


def measure(given: argparse.Namespace) -> Results:
    """Every case in every round, in turn. Raises `DiskTooSmall`."""
    cores = choose_cores()
    results = Results(
        began=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine={**machine(), **versions()},
        quick=given.quick,
        body_bytes=given.body,
    )
    before = CpuLedger.now()
    with contextlib.ExitStack() as opened:
        disk = folder_on_disk(given.directory)
        opened.callback(shutil.rmtree, disk, ignore_errors=True)
        memory = Path(tempfile.mkdtemp(prefix="slp-bench-", dir=_MEMORY if _MEMORY.is_dir() else None))
        opened.callback(shutil.rmtree, memory, ignore_errors=True)
        cases = [_Case("disk", disk, 0.0, given.clients), _Case("tmpfs", memory, 0.0, given.clients)]
        if given.present_gb:
            require_space(disk, given.present_gb)
            most = [each for each in given.clients if each <= _PACED_CLIENTS]
            cases.append(_Case("disk", disk, given.present_gb, most[-1:] or given.clients[-1:]))
        for round_ in range(1, given.rounds + 1):
            for case in cases:
                _say(f"round {round_} of {given.rounds}: {case.place}, {case.present_gib:g} GiB present")
                try:
                    _measure_case(case, round_, given, cores, results)
                except (RecordRefused, OSError) as error:
                    results.problems.append(f"{case.place}, {case.present_gib:g} GiB, round {round_}: {error}")
    results.others_share = CpuLedger.now().others_share_since(before)
    return results


def _measure_case(case: _Case, round_: int, given: argparse.Namespace, cores: Cores, results: Results) -> None:
    home = case.folder / f"log-{case.present_gib:g}"
    settings = audit_settings(home)
    if not home.exists():
        # Made before the first round and kept: a log of 10 GiB takes minutes.
        home.mkdir()
        _begin(settings, case.present_gib)
    with running_on(cores.proxy):
        results.syncs.append(_measure_syncs(case, round_))
        began_s = time.monotonic()
        writer = WriterProcess(settings, home / "writer.log")
        writer.start()
        start_s = time.monotonic() - began_s
    acknowledged = 0
    try:
        with running_on(cores.load):
            for clients in case.clients:
                acknowledged += _load(case, round_, clients, given, writer, results)
            if not case.present_gib:
                acknowledged += _load(case, round_, _PACED_CLIENTS, given, writer, results, paced=True)
        writer_mb = pss_mb([writer.pid])
        status = writer.stop()
    finally:
        writer.end()
    if status != 0:
        raise RecordRefused(f"the writer ended with status {status}: {writer.said()[-500:]}")
    with running_on(cores.proxy):
        results.logs.append(_measure_verification(case, round_, settings, start_s, writer_mb, acknowledged))
    if not case.present_gib:
        shutil.rmtree(home)


def _begin(settings: AuditSettings, gib: float) -> None:
    genesis = initialise(settings)
    if gib:
        _say(f"preparing {gib:g} GiB of log")
        log = appender(genesis, segment_bytes_max=settings.segment_bytes_max)
        log.open_segment()
        fill_log(log, gib)


def _measure_syncs(case: _Case, round_: int) -> SyncFigures:
    taken_s, block, path = [], os.urandom(_SYNC_BYTES), case.folder / "syncs"
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNC_COUNT):
            began_s = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            taken_s.append(time.perf_counter() - began_s)
    path.unlink()
    return SyncFigures(
        case.place, round_, len(taken_s) / sum(taken_s), percentile(taken_s, 0.5) * 1e6, percentile(taken_s, 0.99) * 1e6
    )


def _load(
    case: _Case,
    round_: int,
    clients: int,
    given: argparse.Namespace,
    writer: WriterProcess,
    results: Results,
    *,
    paced: bool = False,
) -> int:
    """One load; returns how many records were acknowledged in all of it."""
    load = WaitingClients(
        writer.settings.socket, clients=clients, body_bytes=given.body, records_per_s=_PACED_PER_S if paced else None
    )
    with contextlib.closing(load), _without_collector():
        load.run(_WARM_UP_S)
        before_s = cpu_s([writer.pid])
        told = load.run(given.seconds)
        spent_s = cpu_s([writer.pid]) - before_s
        load.finish()
    if not told.records:
        raise RecordRefused("nothing was acknowledged")
    results.records.append(
        RecordFigures(
            place=case.place,
            present_gib=case.present_gib,
            round=round_,
            clients=clients,
            paced=paced,
            records=told.records,
            records_per_s=told.records / told.seconds,
            p50_ms=percentile(told.latencies_s, 0.5) * 1e3,
            p99_ms=percentile(told.latencies_s, 0.99) * 1e3,
            cpu_us=spent_s / told.records * 1e6,
        )
    )
    return load.sent


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """The load keeps a hundred thousand latencies; looking through them over and over would be measured too."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _measure_verification(
    case: _Case, round_: int, settings: AuditSettings, start_s: float, writer_mb: float, acknowledged: int
) -> LogFigures:
    """Raises `RecordRefused` when the log is not whole: then the writer's speed is of no interest."""
    directory = settings.directory / settings.host_id
    size = sum(path.stat().st_size for path in directory.glob("0*.jsonl"))
    began_s, spent_s = time.perf_counter(), time.process_time()
    told = verify(directory, genesis_public_key=None)
    took_s, spent_s = time.perf_counter() - began_s, time.process_time() - spent_s
    if not told.ok or told.records < acknowledged:
        raise RecordRefused(f"{told.outcome}, {told.records} of {acknowledged} records: {told.findings[:3]}")
    return LogFigures(
        place=case.place,
        present_gib=case.present_gib,
        round=round_,
        start_s=start_s,
        writer_mb=writer_mb,
        lines=told.lines,
        lines_per_s=told.lines / took_s,
        mib_per_s=size / 2**20 / took_s,
        cpu_us_per_line=spent_s / told.lines * 1e6,
    )


# --- bars -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """`value` is a median over the rounds. `least`: it must be at least the bar, else at most."""

    what: str
    value: float
    bar: float
    least: bool
    unit: str

    @property
    def is_met(self) -> bool:
        return self.value >= self.bar if self.least else self.value <= self.bar


def bars(results: Results) -> list[Bar]:
    """Those that this run has figures for."""
    found = []
    on_disk = [each for each in results.records if each.place == "disk" and not each.present_gib]
    among = [each for each in on_disk if each.clients == _PACED_CLIENTS and not each.paced]
    paced = [each for each in on_disk if each.paced]
    alone = [each for each in on_disk if each.clients == 1]
    large = [each for each in results.records if each.present_gib]
    if among:
        rate = median(each.records_per_s for each in among)
        found.append(Bar(f"records/s on disk, {_PACED_CLIENTS} waiting", rate, 10_000, least=True, unit=""))
    if paced:
        slow = median(each.p99_ms for each in paced)
        found.append(Bar(f"p99 on disk at {_PACED_PER_S:,} records/s", slow, 25.0, least=False, unit="ms"))
    if alone:
        sync_ms = median(each.p50_us for each in results.syncs if each.place == "disk") / 1e3
        beyond = median(each.p50_ms for each in alone) - median(each.cpu_us for each in alone) / 1e3
        ratio = beyond / sync_ms
        found.append(Bar("alone on disk: p50 beyond the writer's own work, in syncs", ratio, 1.5, least=False, unit=""))
    if results.logs:
        rate = median(each.lines_per_s for each in results.logs if not each.present_gib)
        found.append(Bar("verified lines/s, one process", rate, 40_000, least=True, unit=""))
    if large and (base := [each for each in on_disk if each.clients == large[0].clients and not each.paced]):
        ratio = median(each.cpu_us for each in large) / median(each.cpu_us for each in base)
        what = f"CPU of a record with {large[0].present_gib:g} GiB present, against an empty log"
        found.append(Bar(what, ratio, 1.1, least=False, unit=""))
    return found


# --- tables -----------------------------------------------------------------------------------------------------------


def report(results: Results) -> str:
    parts = [
        _heading(results),
        _records_table(results),
        _syncs_table(results),
        _logs_table(results),
        _bars_table(results),
    ]
    if results.problems:
        parts.append("**INVALID:**\n" + "\n".join(f"- {problem}" for problem in results.problems))
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(results: Results) -> str:
    lines = [
        f"Measured {results.began}; bodies of {results.body_bytes:,} bytes, random, each person's by a key of their own."
    ]
    lines += [f"- {name}: {value}" for name, value in results.machine.items()]
    lines.append(f"- other programs took {results.others_share:.2f} cores meanwhile")
    if results.quick:
        lines.append("- A quick run: it shows that everything works. Its times say little.")
    return "\n".join(lines)


def _records_table(results: Results) -> str:
    rows = []
    keys = dict.fromkeys((each.place, each.present_gib, each.paced, each.clients) for each in results.records)
    for place, present, paced, clients in keys:
        figures = [
            each
            for each in results.records
            if (each.place, each.present_gib, each.paced, each.clients) == (place, present, paced, clients)
        ]
        rows.append(
            [
                place,
                f"{present:g} GiB" if present else "empty",
                f"{_PACED_PER_S:,}/s" if paced else str(clients),
                spread([each.records_per_s for each in figures], "{:,.0f}"),
                spread([each.p50_ms for each in figures], "{:.2f}"),
                spread([each.p99_ms for each in figures], "{:.2f}"),
                spread([each.cpu_us for each in figures], "{:.1f}"),
            ]
        )
    heads = ["place", "log before", "waiting", "records/s", "p50 ms", "p99 ms", "writer's CPU µs/record"]
    return table("Records", heads, rows)


def _syncs_table(results: Results) -> str:
    rows = []
    for place in dict.fromkeys(each.place for each in results.syncs):
        figures = [each for each in results.syncs if each.place == place]
        rows.append(
            [
                place,
                spread([each.per_s for each in figures], "{:,.0f}"),
                spread([each.p50_us for each in figures], "{:.0f}"),
                spread([each.p99_us for each in figures], "{:.0f}"),
            ]
        )
    return table("The machine's own: append 3 kB, fdatasync", ["place", "per s", "p50 µs", "p99 µs"], rows)


def _logs_table(results: Results) -> str:
    rows = []
    for place, present in dict.fromkeys((each.place, each.present_gib) for each in results.logs):
        figures = [each for each in results.logs if (each.place, each.present_gib) == (place, present)]
        rows.append(
            [
                place,
                f"{present:g} GiB" if present else "empty",
                spread([each.start_s for each in figures], "{:.2f}"),
                spread([each.writer_mb for each in figures], "{:.0f}"),
                spread([float(each.lines) for each in figures], "{:,.0f}"),
                spread([each.lines_per_s for each in figures], "{:,.0f}"),
                spread([each.mib_per_s for each in figures], "{:.0f}"),
                spread([each.cpu_us_per_line for each in figures], "{:.1f}"),
            ]
        )
    heads = [
        "place",
        "log before",
        "writer's start s",
        "memory MB",
        "lines verified",
        "lines/s",
        "MiB/s",
        "CPU µs/line",
    ]
    return table("Start and verification", heads, rows)


def _bars_table(results: Results) -> str:
    rows = [
        [
            bar.what,
            f"{bar.value:,.2f} {bar.unit}".strip(),
            f"{'at least' if bar.least else 'at most'} {bar.bar:,g} {bar.unit}".strip(),
            "met" if bar.is_met else "missed",
        ]
        for bar in bars(results)
    ]
    return table("Bars", ["what", "median", "bar", ""], rows)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/audit",
        description="Measure the audit writer with waiting clients, on disk and in memory, beside the machine's own fdatasync. "
        "The writer has one core for itself, the clients the other.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works; installs nothing")
    parser.add_argument("--rounds", type=int, help="alternated rounds (default 3)")
    parser.add_argument("--seconds", type=float, help="seconds of each load (default 4)")
    parser.add_argument("--clients", type=_numbers, help="comma list of waiting clients (default 1,64,256)")
    parser.add_argument("--body", type=int, default=2048, help="bytes of each body (default %(default)s)")
    parser.add_argument(
        "--present-gb",
        type=float,
        help="GiB of log that is there before, for the cost in a large log (default 0.2; 0: none)",
    )
    parser.add_argument("--directory", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to FILE")
    given = parser.parse_args(arguments)
    defaults = _QUICK if given.quick else _FULL
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


_FULL: Mapping[str, object] = {"rounds": 3, "seconds": 4.0, "clients": (1, 64, 256), "present_gb": 0.2}
_QUICK: Mapping[str, object] = {"rounds": 1, "seconds": 0.5, "clients": (1, 64), "present_gb": 0.02}


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(each) for each in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no comma list of numbers from 1 on")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
