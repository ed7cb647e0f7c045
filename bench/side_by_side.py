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
from bench.growth import KINDS, GrowthPlan, measure_growth
from bench.measuring import Bench
from bench.own_time import measure_own_time
from bench.peers import PEERS, PeerNotInstalled
from bench.processes import CpuLedger, allow_open_files, choose_cores
from bench.report import Results, report
from bench.targets import BareNginx, Direct, Product, ProductShape, Target, TargetFailed
from bench.tools import ToolMissing, default_cache, find_tools
from bench.upstream import ROOT, MockUpstream, Provider, TlsFront
from tests.support.nginx import nginx_version
from tests.support.programs import ServerFailed, ServerMissing

_SHAPES = {
    shape.name: shape
    for shape in (
        ProductShape("embedded", "product: SQLite, audit on disk"),
        ProductShape("embedded-tmpfs", "product: SQLite, audit on tmpfs", audit_in_memory=True),
        ProductShape("clustered", "product: PostgreSQL + Redis, audit on disk", with_servers=True),
        ProductShape("edge", "product: SQLite, audit on disk, behind nginx TLS", behind_nginx=True),
        ProductShape("embedded-tls", "product: SQLite, audit on disk, TLS upstream"),
        ProductShape("chat", "product: SQLite, audit on disk, asked at /chat", door="/chat"),
        ProductShape(
            "messages", "product: SQLite, audit on disk, asked at /v1/messages, translated", door="/v1/messages"
        ),
    )
}
PRODUCTS = tuple(_SHAPES)
_TLS = "-tls"
_TLS_PEERS = tuple(f"{name}{_TLS}" for name, peer in PEERS.items() if peer.does_tls)
_KNOWN = ("direct", "nginx", *PRODUCTS, "direct-tls", "nginx-tls", *PEERS, *_TLS_PEERS)
_WARM_UP_CLIENTS = 16
_OWN_TIME_REQUESTS = 300
_OWN_TIME_QUICK = 30
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
    allow_open_files()
    tools = find_tools(given.cache, stand_ins_allowed=given.quick)
    results = Results(
        quick=given.quick,
        rounds=given.rounds,
        seconds=given.seconds,
        began=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine(),
        versions=versions(),
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
        targets_chosen = _chosen(
            given, bench, opened.enter_context(TlsFront(upstream, cores, folder)).provider, results
        )
        for target in targets_chosen:
            opened.callback(target.discard)
            try:
                target.prepare()
            except (TargetFailed, ServerFailed) as error:
                _note_problem(results, f"{target.name}: {error}")
                continue
            targets.append(target)
        for target in targets:
            if too_many := [str(clients) for clients in given.clients if clients > target.clients_max]:
                what = f"{target.title}, {' and '.join(too_many)} clients"
                results.not_measured.append(NotMeasured(what, f"it is set up for {target.clients_max}"))
        results.titles = {target.name: target.title for target in targets}
        for round_ in range(1, given.rounds + 1):
            results.disk.append(bench.disk(round_))
            for target in targets:
                _say(f"round {round_} of {given.rounds}: {target.name}")
                try:
                    _measure_once(bench, target, round_, given, results)
                except (TargetFailed, ServerFailed, OSError) as error:
                    _note_problem(results, f"{target.name}, round {round_}: {error}")
        _measure_aside(bench, given, results)
    results.others_share = CpuLedger.now().others_share_since(before)
    return results


def _measure_once(bench: Bench, target: Target, round_: int, given: argparse.Namespace, results: Results) -> None:
    """One target in one round, started and stopped."""
    try:
        results.starts.append(bench.start(target, round_))
        bench.plain_load(target.endpoint, _WARM_UP_CLIENTS, 1)
        for clients in (each for each in given.clients if each <= target.clients_max):
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


def _measure_aside(bench: Bench, given: argparse.Namespace, results: Results) -> None:
    """What is not a matter of side by side: our own time, and growth."""
    if given.own_time:
        _say("own time by an outside clock")
        try:
            results.own_time = measure_own_time(bench, _OWN_TIME_QUICK if given.quick else _OWN_TIME_REQUESTS)
        except (TargetFailed, ServerFailed, OSError) as error:
            _note_problem(results, f"own time: {error}")
    if given.growth:
        plan = GrowthPlan(
            kinds=given.growth,
            rounds=given.rounds,
            seconds=given.seconds,
            keys=given.keys,
            audit_gib=given.audit_gib,
            clients=(1, 8) if given.quick else (64, 1, 256, 1000),
        )
        figures, missing, problems = measure_growth(bench, plan, _say)
        results.growth += figures
        results.not_measured += missing
        for problem in problems:
            _note_problem(results, f"growth: {problem}")


def _chosen(given: argparse.Namespace, bench: Bench, tls: Provider, results: Results) -> list[Target]:
    """The targets asked for, in the order of `_KNOWN`; each over the upstream of its name."""
    plain = bench.upstream.provider
    makers: dict[str, Callable[[], Target]] = {
        "direct": lambda: Direct(plain),
        "direct-tls": lambda: Direct(tls),
        "nginx": lambda: BareNginx(bench.cores, bench.folder, plain),
        "nginx-tls": lambda: BareNginx(bench.cores, bench.folder, tls),
        **{name: partial(make_product, bench, name, tls if name.endswith(_TLS) else plain) for name in PRODUCTS},
    }
    targets = []
    for name in (each for each in _KNOWN if each in given.targets):
        if name in makers:
            targets.append(makers[name]())
            continue
        provider = tls if name.endswith(_TLS) else plain
        peer = PEERS[name.removesuffix(_TLS)](bench.cores, bench.folder, provider, given.cache)
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
    results.not_measured += [
        NotMeasured(peer.title, "not asked for")
        for name, peer in PEERS.items()
        if name not in given.targets and f"{name}{_TLS}" not in given.targets
    ]


def make_product(bench: Bench, name: str, provider: Provider) -> Product:
    """The product in one of its shapes, `PRODUCTS`."""
    return Product(_SHAPES[name], cores=bench.cores, folder=bench.folder, provider=provider)


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


def machine() -> Mapping[str, str]:
    text = Path("/proc/cpuinfo").read_text("utf-8")
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory_kb = int(Path("/proc/meminfo").read_text("ascii").split()[1])
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else platform.machine()}, {memory_kb / 1024**2:.0f} GiB",
        "kernel": f"Linux {platform.release()}",
    }


def versions() -> Mapping[str, str]:
    commit = subprocess.run(
        ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty"],  # noqa: S607  whichever git there is
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    told = {"product": commit or "unknown commit", "nginx": ".".join(map(str, nginx_version()))}
    for package in ("gunicorn", "gevent", "flask", "httptools", "hiredis"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            told[package] = metadata.version(package)
    return {"Python": platform.python_version(), **told}


_FULL: Mapping[str, object] = {
    "rounds": 3,
    "seconds": 3,
    "ramp": 4,
    "clients": (1, 16, 64),
    "streams": (100, 1000),
    "own_time": True,
    "keys": 100_000,
    "audit_gib": 10.0,
}
_QUICK: Mapping[str, object] = {
    "rounds": 1,
    "seconds": 1,
    "ramp": 1,
    "clients": (1, 8),
    "streams": (10,),
    "own_time": False,
    "keys": 1_000,
    "audit_gib": 0.125,
}
_QUICK_TARGETS = ("direct", "nginx", "embedded", "clustered", "embedded-tls")


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
        "--own-time",
        action=argparse.BooleanOptionalAction,
        help="check the product's own account of its time by an outside clock (default: yes, but not with --quick)",
    )
    parser.add_argument(
        "--growth",
        type=_kinds,
        nargs="?",
        const=KINDS,
        default=(),
        metavar="KINDS",
        help=f"also measure growth: all of {', '.join(KINDS)}, or a comma list of them; a quarter of an hour and the disk space",
    )
    parser.add_argument("--keys", type=int, help="API keys of a grown deployment (default 100000)")
    parser.add_argument("--audit-gib", type=float, help="GiB of sealed audit log of a grown deployment (default 10)")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder of compiled tools and peers (default %(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="folder on the disk to measure (default: the temporary folder)")
    given = parser.parse_args(arguments)
    defaults = _QUICK if given.quick else _FULL
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.streams = tuple(size for size in given.streams if size)
    if given.peers is None:
        given.peers = () if given.quick else tuple(PEERS)
    ours = _QUICK_TARGETS if given.quick else tuple(name for name in _KNOWN if name not in (*PEERS, *_TLS_PEERS))
    over_tls = (name for name in _TLS_PEERS if name.removesuffix(_TLS) in given.peers)
    given.targets = given.only or (*ours, *given.peers, *over_tls)
    given.cache = given.cache.absolute()
    return given


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        named = () if text == "none" else tuple(text.split(","))
        if unknown := [name for name in named if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return named

    return names


def _kinds(text: str) -> tuple[str, ...]:
    return KINDS if text == "all" else _names(KINDS)(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _note_problem(results: Results, problem: str) -> None:
    results.problems.append(problem)
    _say(f"PROBLEM {problem}")


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
