"""One measurement at a time: load on one core, the target on the other, CPU time read before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from bench.figures import DiskFigures, PlainFigures, StartFigures, StreamFigures, percentile
from bench.processes import Cores, cpu_s, pss_mb, running_on
from bench.targets import Endpoint, Target, TargetFailed
from bench.tools import NATIVE, Tools
from bench.upstream import CHUNKS_PER_S, ROOT, MockUpstream

Told = NewType("Told", dict[str, float])

_SYSTEM = "You are a helpful assistant of the accounting department. Answer briefly and cite the paragraph."
_QUESTION = (
    "Please summarise the following passage for the quarterly letter to our customers and keep all figures. "
    "The group's revenue rose by 12 percent to 418 million in the third quarter, while operating costs were held at "
    "201 million because of lower energy prices and the closing of two warehouses in spring. Orders on hand stood at "
    "1.3 billion at the end of September. The board expects growth between 9 and 11 percent for the whole year, on the "
    "assumption that exchange rates do not change much. Questions may be sent to the investor relations desk or to your "
    "usual contact. Write three paragraphs, no headings, and add one sentence on the risks named in the note on page 14 "
    "of the report."
)
_SETTLE_S = 0.2
_SETTLE_TURNS_MAX = 25
_RECORDS_PER_REQUEST = 2
_SYNC_COUNT = 300
_SYNC_BYTES = 3072


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs. `folder` lies on the disk that is measured."""

    tools: Tools
    cores: Cores
    upstream: MockUpstream
    folder: Path

    def start(self, target: Target, round_: int) -> StartFigures:
        """Start `target`; it answers afterwards. Raises `TargetFailed`."""
        began_s = time.monotonic()
        target.start()
        target.await_first_answer()
        first_answer_s = time.monotonic() - began_s
        time.sleep(0.5)
        memory = {part: pss_mb(pids) for part, pids in target.parts().items()}
        return StartFigures(target.name, round_, first_answer_s, memory)

    def plain(self, target: Target, round_: int, clients: int, seconds: int) -> PlainFigures:
        """Load it with `clients` connections. Raises `TargetFailed` when the counts do not add up."""
        asked_before, records_before = self._settled_counts(target)
        cpu_before, aside_before = _cpu_of(target.parts()), _cpu_of(target.aside())
        told = self.plain_load(target.endpoint, clients, seconds)
        cpu, aside = _since(cpu_before, target.parts()), _since(aside_before, target.aside())
        asked_after, records_after = self._settled_counts(target)
        requests = max(int(told["requests"]), 1)
        figures = PlainFigures(
            target=target.name,
            round=round_,
            clients=clients,
            requests=int(told["requests"]),
            refused=int(told["refused"]),
            broken=int(told["broken"]),
            asked_upstream=asked_after - asked_before,
            audit_records=None if records_after is None or records_before is None else records_after - records_before,
            requests_per_s=told["requests"] / told["seconds"],
            p50_us=told["p50_us"],
            p99_us=told["p99_us"],
            cpu_us={part: spent * 1e6 / requests for part, spent in cpu.items()},
            aside_us={part: spent * 1e6 / requests for part, spent in aside.items()},
        )
        _check_counts(figures)
        return figures

    def _settled_counts(self, target: Target) -> tuple[int, int | None]:
        """Requests upstream and audit records, once the last requests of a load that has stopped are through."""
        counts = self.upstream.asked(), target.audit_records()
        for _ in range(_SETTLE_TURNS_MAX):
            time.sleep(_SETTLE_S)
            before, counts = counts, (self.upstream.asked(), target.audit_records())
            # An exchange without its end is not through, however long its disk stands still.
            if counts == before and (counts[1] or 0) % _RECORDS_PER_REQUEST == 0:
                break
        return counts

    def plain_load(self, endpoint: Endpoint, clients: int, seconds: int) -> Told:
        """Ask as fast as `clients` connections can for `seconds`; what the load generator tells."""
        body = self._body_file(endpoint, stream=False)
        if self.tools.wrk is not None:
            scheme = "https" if endpoint.tls else "http"
            command = [
                self.tools.wrk, "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "20s", "-s", str(NATIVE / "chat.lua"),
                f"{scheme}://{endpoint.host}:{endpoint.port}{endpoint.path}",
            ]  # fmt: skip
        else:
            command = [
                sys.executable, "-m", "bench.python_load", *(["--tls"] if endpoint.tls else []), endpoint.host,
                str(endpoint.port), endpoint.path, str(clients), str(seconds), str(body), *_header_lines(endpoint),
            ]  # fmt: skip
        environment = {
            **os.environ,
            "BENCH_BODY": str(body),
            "BENCH_HEADERS": "\n".join(_header_lines(endpoint)),
            **({"BENCH_KEYS": str(endpoint.keys)} if endpoint.keys else {}),
        }
        with running_on(self.cores.load):
            done = subprocess.run(  # noqa: S603  our own argument list
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + 60
            )
        return _told_by(command, done.returncode, done.stdout, done.stderr)

    def streams(self, target: Target, round_: int, size: int, ramp_s: int, seconds: int) -> StreamFigures:
        """Hold `size` streams open for `seconds` after `ramp_s`. Streams that fail are a figure, not an error."""
        endpoint = target.stream_endpoint
        assert endpoint is not None
        assert self.tools.stream_load is not None
        command = [
            str(self.tools.stream_load), str(endpoint.port), endpoint.path, str(size), str(ramp_s), str(seconds),
            str(self._body_file(endpoint, stream=True)), *_header_lines(endpoint),
        ]  # fmt: skip
        parts = target.parts()
        idle_mb = sum(pss_mb(pids) for pids in parts.values())
        with running_on(self.cores.load):
            load = subprocess.Popen(  # noqa: S603  our own argument list
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        try:
            time.sleep(ramp_s)
            began_s, before = time.monotonic(), _cpu_of(parts)
            time.sleep(max(seconds - 0.2, 0.1))
            spent, took_s = _since(before, parts), time.monotonic() - began_s
            held_mb = sum(pss_mb(pids) for pids in parts.values())
            output, complaints = load.communicate(timeout=30)
        finally:
            if load.poll() is None:
                load.kill()
                load.wait()
        told = _told_by(command, load.returncode, output, complaints)
        chunks_per_s = told["chunks"] / told["seconds"]
        return StreamFigures(
            target=target.name,
            round=round_,
            streams=size,
            chunks_per_s=chunks_per_s,
            delivered=chunks_per_s / (size * CHUNKS_PER_S),
            ended=int(told["ended"]),
            refused=int(told["refused"]),
            broken=int(told["broken"]),
            first_chunk_p50_ms=told["first_chunk_p50_ms"],
            first_chunk_p99_ms=told["first_chunk_p99_ms"],
            delay_p50_ms=told["delay_p50_ms"],
            delay_p99_ms=told["delay_p99_ms"],
            cpu_us={part: each * 1e6 / took_s / max(chunks_per_s, 1) for part, each in spent.items()},
            core_share=sum(spent.values()) / took_s,
            kb_per_stream=(held_mb - idle_mb) * 1024 / size,
        )

    def disk(self, round_: int) -> DiskFigures:
        """What one durable append costs in `folder`, whose disk also holds the audit log."""
        taken_us = []
        block = os.urandom(_SYNC_BYTES)
        path = self.folder / "disk"
        with running_on(self.cores.proxy), path.open("wb", buffering=0) as file:
            for _ in range(_SYNC_COUNT):
                began_s = time.perf_counter()
                file.write(block)
                os.fdatasync(file.fileno())
                taken_us.append((time.perf_counter() - began_s) * 1e6)
        path.unlink()
        return DiskFigures(round_, percentile(taken_us, 0.5), percentile(taken_us, 0.99))

    def _body_file(self, endpoint: Endpoint, *, stream: bool) -> Path:
        asked = endpoint.asked(_SYSTEM, _QUESTION)
        body: dict[str, object] = {"model": endpoint.model, **asked, "temperature": 0.2, "max_tokens": 400}
        path = self.folder / ("stream.json" if stream else "plain.json")
        path.write_text(json.dumps({**body, "stream": True} if stream else body), "utf-8")
        return path


def _check_counts(figures: PlainFigures) -> None:
    """Every answer was asked for upstream once; the load's last requests may be answered after it has stopped counting."""
    least, most = figures.requests - figures.refused, figures.requests + figures.clients + figures.broken
    if not least <= figures.asked_upstream <= most:
        raise TargetFailed(
            f"{figures.target}: {figures.requests} answers at {figures.clients} clients, but {figures.asked_upstream} requests upstream"
        )
    if figures.audit_records is None:
        return
    if not least * _RECORDS_PER_REQUEST <= figures.audit_records <= most * _RECORDS_PER_REQUEST:
        raise TargetFailed(
            f"{figures.target}: {figures.requests} answers at {figures.clients} clients, but {figures.audit_records} audit records"
        )


def _cpu_of(parts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {part: cpu_s(pids) for part, pids in parts.items()}


def _since(before: Mapping[str, float], parts: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {part: spent - before.get(part, 0.0) for part, spent in _cpu_of(parts).items()}


def _header_lines(endpoint: Endpoint) -> list[str]:
    return [f"{name}: {value}" for name, value in endpoint.headers.items()]


def _told_by(command: Sequence[str], status: int, output: str, complaints: str) -> Told:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if status != 0 or not lines:
        raise TargetFailed(f"{Path(command[0]).name} ended with status {status}: {complaints[-1000:]}{output[-1000:]}")
    return Told(json.loads(lines[-1]))
