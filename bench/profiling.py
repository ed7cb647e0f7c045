"""`bench/profile`: CPU time per request, or per chunk of a stream, by step of the route.

py-spy samples the loaded worker and audit writer; each sample belongs to the step of its innermost frame that belongs to
one. Shares times the CPU time per request of an unprofiled load give microseconds. Sampling misses what is shorter than
its interval only by chance, so a share of 1 % is good to about a fifth of itself at 5,000 samples. A process that waits for
the disk counts as running: of the writer's `sync_data` most is waiting, not CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measuring import Bench
from bench.processes import choose_cores, running_on
from bench.side_by_side import folder_on_disk, make_product
from bench.targets import Product, TargetFailed
from bench.tools import ToolMissing, default_cache, find_tools
from bench.upstream import ROOT, MockUpstream
from tests.support.programs import ServerFailed, ServerMissing

_PY_SPY = "py-spy==0.4.3"
_INSTALL_PATIENCE_S = 300
_SAMPLES_PER_S = 400
_PROCESSES = ("worker", "audit writer")
_WARM_UP_CLIENTS = 16
_RAMP_S = 4
_FUNCTIONS_SHOWN = 25
_LINES_SHOWN = 3

# A sample belongs to the first of these that its frames name, looking from the innermost frame outwards. Libraries that
# serve several steps (gevent's sockets, the standard library) are in none, so that the caller's step pays for them.
_STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("logging", ("/logging/__init__.py", "/logging/handlers.py", "secure_llm_proxy/telemetry/logs.py")),
    ("metrics", ("/prometheus_client/", "secure_llm_proxy/telemetry/")),
    ("strict JSON", ("secure_llm_proxy/foundation/strict_json.py",)),
    ("ids and clock", ("secure_llm_proxy/foundation/identifiers.py", "secure_llm_proxy/foundation/clock.py")),
    ("database", ("/sqlalchemy/", "/psycopg2/", "secure_llm_proxy/foundation/database.py")),
    ("client watch", ("secure_llm_proxy/web/presence.py",)),
    ("wire models (pydantic)", ("/pydantic/", "secure_llm_proxy/web/wire.py", "secure_llm_proxy/web/openai/wire.py")),
    ("web: doors, inbound, answers", ("secure_llm_proxy/web/",)),
    ("admission", ("secure_llm_proxy/admission/",)),
    ("identity", ("secure_llm_proxy/identity/",)),
    ("throttling", ("secure_llm_proxy/throttling/", "/redis/", "/hiredis/")),
    ("routing", ("secure_llm_proxy/routing/",)),
    ("audit client", ("secure_llm_proxy/audit/",)),
    ("upstream", ("secure_llm_proxy/upstream/",)),
    ("gateway", ("secure_llm_proxy/gateway/", "secure_llm_proxy/vocabulary/")),
    ("Flask and Werkzeug", ("/flask/", "/werkzeug/", "secure_llm_proxy/application.py", "/itsdangerous/")),
    ("gunicorn's HTTP parser", ("/gunicorn/http/message.py", "/gunicorn/http/parser.py", "/gunicorn/http/unreader.py")),
    ("gunicorn's worker, ours", ("/gunicorn/", "secure_llm_proxy/server/")),
)
_EVENT_LOOP = "gevent loop and switches"
_UNREADABLE = "(not readable when sampled)"
_PACKAGE = "secure_llm_proxy/"
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>[^()]*?)(?::(?P<line>\d+))?\)")


@dataclass(frozen=True, slots=True)
class Profile:
    """`cpu_us` per request (or chunk) of one process, shared out over steps and over our own functions (what they call included).

    `innermost` has, for each step, the lines that were running when it was sampled, libraries' lines included.
    """

    process: str
    cpu_us: float
    samples: int
    steps: Mapping[str, float]
    functions: Mapping[str, float]
    innermost: Mapping[str, Mapping[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 1 the load failed, 2 usage or something missing."""
    given = _parse(arguments)
    try:
        profiles = measure(given)
    except (ToolMissing, ServerMissing) as error:
        print(error, file=sys.stderr)
        return 2
    except (TargetFailed, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1
    load = f"chunk at {given.streams} streams" if given.streams else f"request at {given.clients} clients"
    print(report(profiles, f"CPU µs per {load} of `{given.target}`, by step."))
    if given.json is not None:
        told = [{"process": each.process, "cpu_us": each.cpu_us, "steps": dict(each.steps)} for each in profiles]
        given.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0


def measure(given: argparse.Namespace) -> list[Profile]:
    """Worker and audit writer of the product under load. Raises `TargetFailed`, `ToolMissing`."""
    cores, tools = choose_cores(), find_tools(given.cache, stand_ins_allowed=given.quick)
    py_spy = _py_spy(given.cache)
    with contextlib.ExitStack() as opened:
        folder = folder_on_disk(None)
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        upstream = opened.enter_context(MockUpstream(tools, cores, folder))
        bench = Bench(tools, cores, upstream, folder)
        product = make_product(bench, given.target)
        opened.callback(product.discard)
        product.prepare()
        opened.callback(product.stop)
        bench.start(product, 1)
        bench.plain_load(product.endpoint, _WARM_UP_CLIENTS, 1)
        cpu_us = _unprofiled(bench, product, given)
        return [_sampled(bench, product, given, py_spy, process, cpu_us[process]) for process in _PROCESSES]


def _unprofiled(bench: Bench, product: Product, given: argparse.Namespace) -> Mapping[str, float]:
    """CPU time per request or per chunk, by process. Raises `TargetFailed` when requests fail."""
    if given.streams:
        held = bench.streams(product, 1, given.streams, _RAMP_S, given.seconds)
        if held.refused or held.broken:
            raise TargetFailed(f"{held.refused} streams refused, {held.broken} broken: nothing to profile")
        return held.cpu_us
    figures = bench.plain(product, 1, given.clients, given.seconds)
    if figures.refused or figures.broken:
        raise TargetFailed(f"{figures.refused} requests refused, {figures.broken} broken: nothing to profile")
    return figures.cpu_us


def _sampled(
    bench: Bench, product: Product, given: argparse.Namespace, py_spy: Path, process: str, cpu_us: float
) -> Profile:
    """Load the product longer than it is sampled, and sample it once the load is there."""
    if given.streams:
        arguments = (product, 1, given.streams, _RAMP_S, given.seconds + 2)
        load, ramp_s = threading.Thread(target=bench.streams, args=arguments, daemon=True), _RAMP_S
    else:
        load = threading.Thread(
            target=bench.plain_load, args=(product.endpoint, given.clients, given.seconds + 2), daemon=True
        )
        ramp_s = 0
    stacks = bench.folder / "stacks"
    [pid] = product.parts()[process]
    command = [
        str(py_spy), "record", "--pid", str(pid), "--duration", str(given.seconds), "--rate", str(_SAMPLES_PER_S),
        "--format", "raw", "--full-filenames", "--nonblocking", "--output", str(stacks),
    ]  # fmt: skip
    load.start()
    time.sleep(ramp_s)
    try:
        with running_on(bench.cores.load):
            done = subprocess.run(  # noqa: S603  our own argument list
                command, capture_output=True, text=True, check=False, timeout=given.seconds + 60
            )
    finally:
        load.join()
    if done.returncode != 0 or not stacks.exists():
        raise TargetFailed(f"py-spy can't sample the {process} (it needs the right to trace): {done.stderr[-500:]}")
    return read_stacks(process, cpu_us, stacks.read_text("utf-8"))


def read_stacks(process: str, cpu_us: float, stacks: str) -> Profile:
    """py-spy's raw form: frames from the outermost to the innermost, separated by semicolons, and a count."""
    steps: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    innermost: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        samples = int(count)
        parts = frames.replace(f"{ROOT}/", "").split(";")
        step = _step_of(parts) if process == "worker" else _writer_step_of(parts)
        steps[step] += samples
        innermost[step][_line_of(parts[-1])] += samples
        for function in {_name_of(frame) for frame in parts if f"({_PACKAGE}" in frame}:
            functions[function] += samples
    whole = max(steps.total(), 1)
    return Profile(
        process,
        cpu_us,
        steps.total(),
        {step: cpu_us * samples / whole for step, samples in steps.most_common()},
        {function: cpu_us * samples / whole for function, samples in functions.most_common()},
        {
            step: {line: cpu_us * samples / whole for line, samples in lines.most_common(_LINES_SHOWN)}
            for step, lines in innermost.items()
        },
    )


def _step_of(frames: Sequence[str]) -> str:
    for frame in reversed(frames):
        for step, places in _STEPS:
            if any(place in frame for place in places):
                return step
    return _EVENT_LOOP if any("/gevent/" in frame for frame in frames) else _UNREADABLE


def _writer_step_of(frames: Sequence[str]) -> str:
    """The writer's own modules are its steps."""
    for frame in reversed(frames):
        found = _FRAME.fullmatch(frame)
        if found is not None and found["file"].startswith(_PACKAGE):
            return found["file"].removeprefix(_PACKAGE)
    return _UNREADABLE


def _name_of(frame: str) -> str:
    """A function and its file in our package, without the line."""
    found = _FRAME.fullmatch(frame)
    return frame if found is None else f"{found['function']} ({found['file'].removeprefix(_PACKAGE)})"


def _line_of(frame: str) -> str:
    """A function, the last two parts of its file, and the line."""
    found = _FRAME.fullmatch(frame)
    if found is None:
        return _UNREADABLE
    return f"{found['function']} {'/'.join(found['file'].split('/')[-2:])}:{found['line']}"


def report(profiles: Sequence[Profile], title: str) -> str:
    parts = [title]
    for profile in profiles:
        rows = [
            f"| {step} | {spent:.1f} | {spent / profile.cpu_us:.1%} | {_dearest(profile.innermost[step])} |"
            for step, spent in profile.steps.items()
        ]
        head = f"**{profile.process}: {profile.cpu_us:.1f} µs** ({profile.samples} samples)"
        parts.append("\n".join([head, "", "| step | µs | share | dearest lines |", "|---|---|---|---|", *rows]))
        dearest = list(profile.functions.items())[:_FUNCTIONS_SHOWN]
        rows = [f"| `{name}` | {spent:.1f} |" for name, spent in dearest]
        parts.append(
            "\n".join(["Our functions, with all that they call:", "", "| function | µs |", "|---|---|", *rows])
        )
    return "\n\n".join(parts)


def _dearest(lines: Mapping[str, float]) -> str:
    return ", ".join(f"`{line}` {spent:.1f}" for line, spent in lines.items())


def _py_spy(cache: Path) -> Path:
    """py-spy in an environment of its own. Raises `ToolMissing` when it can't be installed."""
    environment = cache / _PY_SPY
    program = environment / "bin" / "py-spy"
    if program.exists():
        return program
    python = str(environment / "bin" / "python")
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", _PY_SPY],
    ):
        done = subprocess.run(  # noqa: S603  our own argument list
            command, capture_output=True, text=True, check=False, timeout=_INSTALL_PATIENCE_S
        )
        if done.returncode != 0:
            raise ToolMissing(f"{_PY_SPY} can't be installed: {done.stderr.strip()[-300:]}")
    return program


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/profile",
        description="Sample the loaded product with py-spy and tell the CPU time per request of each step of the route.",
    )
    parser.add_argument("--target", choices=("embedded", "embedded-tmpfs", "clustered", "edge"), default="embedded")
    parser.add_argument("--clients", type=int, default=16, help="connections (default %(default)s)")
    parser.add_argument("--streams", type=int, default=0, help="hold so many streams instead, and tell µs per chunk")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each sampling (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="use what is installed; install no servers or tools")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the steps to FILE too")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of tools (default %(default)s)")
    given = parser.parse_args(arguments)
    given.cache = given.cache.absolute()
    return given


if __name__ == "__main__":
    sys.exit(main())
