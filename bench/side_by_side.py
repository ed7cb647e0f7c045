"""`bench/run`: targets started, measured and stopped one after the other, in alternating rounds, and the tables of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from bench.figures import NotMeasured
from bench.measuring import Bench
from bench.peers import PEERS, PeerNotInstalled
from bench.processes import CpuLedger, choose_cores
from bench.report import Results, report
from bench.targets import BareNginx, Direct, Product, Target, TargetFailed
from bench.tools import ToolMissing, default_cache, find_tools
from bench.upstream import ROOT, MockUpstream
from tests.support.nginx import nginx_version
from tests.support.programs import ServerFailed, ServerMissing

_PRODUCTS = ("embedded", "embedded-tmpfs", "clustered", "edge")
_KNOWN = ("direct", "nginx", *_PRODUCTS, *PEERS)
_TITLES = {
    "embedded": "product: SQLite, audit on disk",
    "embedded-tmpfs": "product: SQLite, audit on tmpfs",
    "clustered": "product: PostgreSQL + Redis, audit on disk",
    "edge": "product: SQLite, audit on disk, behind nginx TLS",
}
_WARM_UP_CLIENTS = 16
_VOLATILE = frozenset({"tmpfs", "ramfs"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 invalid, 2 usage or something missing."""
    given = _parse(arguments)
    try:
        results = measure(given)
    except (ToolMissing, ServerMissing) as error:
        print(error, file=sys.stderr)
        return 2
    print(report(results))
    if given.json is not None:
        given.json.write_text(json.dumps(results.as_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if results.problems else 0


def measure(given: argparse.Namespace) -> Results:
    """Everything that was asked for. A target that fails is a problem of the results, and the others go on."""
    cores = choose_cores()
    tools = find_tools(given.cache, stand_ins_allowed=given.quick)
    results = Results(
        quick=given.quick,
        rounds=given.rounds,
        seconds=given.seconds,
        began=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        versions=_versions(),
        titles={},
        load_generator="wrk" if tools.wrk is not None else "pure Python (no wrk)",
    )
    if not cores.are_apart:
        results.not_measured.append(NotMeasured("true latencies", "one core only: load and target take turns on it"))
    if not given.quick:
        _tell_unused_peers(given, results)
    before = CpuLedger.now()
    with contextlib.ExitStack() as opened:
        folder = folder_on_disk(given.directory)
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        upstream = opened.enter_context(MockUpstream(tools, cores, folder))
        bench = Bench(tools, cores, upstream, folder)
        if not upstream.gives_streams:
            results.not_measured.append(NotMeasured("streams", "no C compiler for the stream client"))
        targets = []
        for target in _chosen(given, bench, results):
            opened.callback(target.discard)
            try:
                target.prepare()
            except (TargetFailed, ServerFailed) as error:
                _note_problem(results, f"{target.name}: {error}")
                continue
            targets.append(target)
        results.titles = {target.name: target.title for target in targets}
        for round_ in range(1, given.rounds + 1):
            results.disk.append(bench.disk(round_))
            for target in targets:
                _say(f"round {round_} of {given.rounds}: {target.name}")
                try:
                    _measure_once(bench, target, round_, given, results)
                except (TargetFailed, ServerFailed, OSError) as error:
                    _note_problem(results, f"{target.name}, round {round_}: {error}")
    results.others_share = CpuLedger.now().others_share_since(before)
    return results


def _measure_once(bench: Bench, target: Target, round_: int, given: argparse.Namespace, results: Results) -> None:
    """One target in one round, started and stopped."""
    try:
        results.starts.append(bench.start(target, round_))
        bench.plain_load(target.endpoint, _WARM_UP_CLIENTS, 1)
        for clients in given.clients:
            figures = bench.plain(target, round_, clients, given.seconds)
            results.plain.append(figures)
            if figures.refused or figures.broken:
                _note_problem(
                    results,
                    f"{target.name}, round {round_}, {clients} clients: {figures.refused} refused, {figures.broken} broken",
                )
        if target.stream_endpoint is None or bench.tools.stream_load is None:
            return
        for size in dict.fromkeys(min(size, target.streams_max) for size in given.streams):
            held = bench.streams(target, round_, size, given.ramp, 2 * given.seconds)
            results.streams.append(held)
            if held.refused:
                _note_problem(results, f"{target.name}, round {round_}, {size} streams: {held.refused} refused")
    finally:
        target.stop()


def _chosen(given: argparse.Namespace, bench: Bench, results: Results) -> list[Target]:
    makers: dict[str, Callable[[], Target]] = {
        "direct": lambda: Direct(bench.upstream),
        "nginx": lambda: BareNginx(bench.cores, bench.folder, bench.upstream),
        **{name: partial(make_product, bench, name) for name in _PRODUCTS},
    }
    names = list(given.only) if given.only else ["direct", "nginx", *_PRODUCTS]
    targets = [makers[name]() for name in names if name in makers]
    wanted = [name for name in names if name in PEERS] if given.only else given.peers
    for name in wanted:
        peer = PEERS[name](bench.cores, bench.folder, bench.upstream, given.cache)
        if given.install_peers:
            _say(f"installing {name}")
            try:
                peer.install()
            except PeerNotInstalled as error:
                results.not_measured.append(NotMeasured(peer.title, f"could not be installed: {error}"))
                continue
        if peer.is_installed:
            targets.append(peer)
        else:
            results.not_measured.append(NotMeasured(peer.title, "not installed; bench/run --install-peers installs it"))
    return targets


def _tell_unused_peers(given: argparse.Namespace, results: Results) -> None:
    chosen = given.only or given.peers
    results.not_measured += [
        NotMeasured(peer.title, "not asked for") for name, peer in PEERS.items() if name not in chosen
    ]


def make_product(bench: Bench, name: str) -> Product:
    """The product in one of its shapes, `_PRODUCTS`."""
    return Product(
        name,
        _TITLES[name],
        cores=bench.cores,
        folder=bench.folder,
        upstream=bench.upstream,
        audit_in_memory=name == "embedded-tmpfs",
        with_servers=name == "clustered",
        behind_nginx=name == "edge",
    )


def folder_on_disk(wanted: Path | None) -> Path:
    """A new folder with a short path (unix sockets lie in it) on a real disk, else syncs would cost nothing."""
    places = [wanted] if wanted is not None else [Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108  mkdtemp below
    place = next((each for each in places if _file_system(each) not in _VOLATILE), places[0])
    return Path(tempfile.mkdtemp(prefix="slp-bench-", dir=place))


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`."""
    longest, kind = Path(), "unknown"
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, mounted, type_, *_ = line.split()
        if path.resolve().is_relative_to(mounted) and len(mounted) >= len(str(longest)):
            longest, kind = Path(mounted), type_
    return kind


def _machine() -> Mapping[str, str]:
    text = Path("/proc/cpuinfo").read_text("utf-8")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory_kb = int(Path("/proc/meminfo").read_text("ascii").split()[1])
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else platform.machine()}, {memory_kb / 1024**2:.0f} GiB",
        "kernel": f"Linux {platform.release()}",
    }


def _versions() -> Mapping[str, str]:
    commit = subprocess.run(
        ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"],  # noqa: S607  whichever git there is
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    told = {"product": commit or "unknown commit", "nginx": ".".join(map(str, nginx_version()))}
    for package in ("gunicorn", "gevent", "flask", "hiredis"):
        told[package] = metadata.version(package)
    return {"Python": platform.python_version(), **told}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Measure the product beside nginx and other gateways. Everything runs on loopback and is stopped "
        "again; the measured processes have one core for themselves, load and mock provider the other.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works; installs nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round to FILE")
    parser.add_argument("--rounds", type=int, help="alternated rounds (default 3)")
    parser.add_argument("--seconds", type=int, help="seconds of each measurement, twice that for streams (default 3)")
    parser.add_argument("--only", type=_names(_KNOWN), metavar="NAMES", help=f"comma list of {', '.join(_KNOWN)}")
    parser.add_argument(
        "--peers",
        type=_names(tuple(PEERS)),
        metavar="NAMES",
        help="comma list of peers, or none (default: all, where installed)",
    )
    parser.add_argument(
        "--install-peers", action="store_true", help="install the chosen peers into the cache folder first"
    )
    parser.add_argument("--clients", type=_numbers, help="comma list of connections (default 1,16,64)")
    parser.add_argument("--streams", type=_numbers, help="comma list of open streams (default 100,1000); 0: none")
    parser.add_argument("--ramp", type=int, help="seconds in which streams begin (default 4)")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder of compiled tools and peers (default %(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    given = parser.parse_args(arguments)
    full, quick = (3, 3, 4, (1, 16, 64), (100, 1000)), (1, 1, 1, (1, 8), (10,))
    for name, value in zip(
        ("rounds", "seconds", "ramp", "clients", "streams"), quick if given.quick else full, strict=True
    ):
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.streams = tuple(size for size in given.streams if size)
    if given.peers is None:
        given.peers = () if given.quick else tuple(PEERS)
    given.cache = given.cache.absolute()
    return given


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        named = () if text == "none" else tuple(text.split(","))
        if unknown := [name for name in named if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return named

    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _note_problem(results: Results, problem: str) -> None:
    results.problems.append(problem)
    _say(f"PROBLEM {problem}")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
