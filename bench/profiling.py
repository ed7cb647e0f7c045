"""`bench/profile`: CPU time per request, or per chunk of a stream, by step of the route.

py-spy samples the loaded worker and audit writer; each sample belongs to the step of its innermost frame that belongs to
one. Shares times the CPU time per request of an unprofiled load give microseconds. Sampling misses what is shorter than
its interval only by chance, so a share of 1 % is good to about a fifth of itself at 5,000 samples. A process that waits for
the disk counts as running: of the writer's `sync_data` most is waiting, not CPU time. So does one that is ready and waits
for its core: where the writer takes turns with the worker, the place of the worker's wait (its event loop) looks dearer.
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
from bench.side_by_side import PRODUCTS, folder_on_disk, make_product
from bench.targets import Product, TargetFailed
from bench.tools import ToolMissing, default_cache, find_tools
from bench.upstream import ROOT, MockUpstream, TlsFront
from tests.support.programs import ServerFailed, ServerMissing

_PY_SPY = "py-spy==0.4.3"
_INSTALL_PATIENCE_S = 300
_SAMPLES_PER_S = 400
_PROCESSES = ("worker", "audit writer")
_WARM_UP_CLIENTS = 16
_RAMP_S = 4
_FUNCTIONS_SHOWN = 25
_LINES_SHOWN = 3

# Steps of our modules, by the longest beginning of their path in the package that stands here; a room that stands nowhere
# is a step by its own name, so that nothing new is lost.
_OURS: Mapping[str, str] = {
    "application.py": "Flask and Werkzeug",
    "foundation/clock": "ids and clock",
    "foundation/database": "database",
    "foundation/identifiers": "ids and clock",
    "foundation/strict_json": "strict JSON",
    "server/": "worker class",
    "server/answer_writer": "worker class: writing answers",
    "server/request_reader": "worker class: reading requests",
    "telemetry/": "metrics",
    "telemetry/logs": "logging",
    "throttling/redis_": "throttling: Redis",
    "throttling/resp": "throttling: Redis",
    "web/": "web: doors, inbound, answers",
    "web/chat/wire": "wire models (pydantic)",
    "web/flask_shell": "Flask and Werkzeug",
    "web/hot_doors": "web: hot doors",
    "web/openai/wire": "wire models (pydantic)",
    "web/presence": "client watch",
    "web/wire": "wire models (pydantic)",
    "audit/": "audit client",
}
# Words and tools of many rooms: whoever uses them pays, and only what nobody's frame stands around goes by their name.
_SHARED: Mapping[str, str] = {
    "foundation/loop_socket": "loop sockets",
    "foundation/": "foundation",
    "vocabulary/": "vocabulary",
}
# Libraries that are a step of their own, by package and the beginning of the module's path. Those that serve several
# steps (gevent, httptools, hiredis, redis, orjson, ssl) are in none, so that the caller's step pays for them.
_LIBRARIES: Mapping[str, str] = {
    "flask/": "Flask and Werkzeug",
    "gunicorn/": "gunicorn's worker",
    "gunicorn/http/body": "gunicorn's HTTP parser",
    "gunicorn/http/message": "gunicorn's HTTP parser",
    "gunicorn/http/parser": "gunicorn's HTTP parser",
    "gunicorn/http/unreader": "gunicorn's HTTP parser",
    "itsdangerous/": "Flask and Werkzeug",
    "jinja2/": "Flask and Werkzeug",
    "logging/": "logging",
    "prometheus_client/": "metrics",
    "psycopg2/": "database",
    "pydantic/": "wire models (pydantic)",
    "pydantic_core/": "wire models (pydantic)",
    "sqlalchemy/": "database",
    "werkzeug/": "Flask and Werkzeug",
}
_LIBRARY_FOLDER = re.compile(
    r".*?/(?:site-packages|dist-packages|lib(?:64)?/python3\.\d+)/(?!site-packages/|dist-packages/)(.+)"
)
_OUTSIDE_THE_PACKAGE = frozenset({"app.py", "gunicorn.conf.py", "manage.py"})
_EVENT_LOOP = "gevent loop and switches"
_NOBODYS = "(no frame of ours)"
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
        provider = upstream.provider
        if given.target.endswith("-tls"):
            provider = opened.enter_context(TlsFront(upstream, cores, folder)).provider
        bench = Bench(tools, cores, upstream, folder)
        product = make_product(bench, given.target, provider)
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
        if not count.isdigit():
            continue  # a frame read in the midst of its change; its name may hold anything, line ends too
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
    """The step of the innermost frame that belongs to one; else of the innermost frame of what is shared."""
    shared = None
    for frame in reversed(frames):
        found = _FRAME.fullmatch(frame)
        if found is None:
            continue
        file = found["file"]
        if file in _OUTSIDE_THE_PACKAGE:
            return _OURS["server/"]
        if file.startswith(_PACKAGE):
            module = file.removeprefix(_PACKAGE)
            name = _longest(_SHARED, module)
            if name is None or _longest(_OURS, module):
                return _longest(_OURS, module) or module.partition("/")[0].removesuffix(".py")
            shared = shared or name
        elif (library := _LIBRARY_FOLDER.fullmatch(file)) and (step := _longest(_LIBRARIES, library[1])):
            return step
    if shared is not None:
        return shared
    if any("/gevent/" in frame for frame in frames):
        return _EVENT_LOOP
    return _NOBODYS if any(map(_FRAME.fullmatch, frames)) else _UNREADABLE


def _longest(steps: Mapping[str, str], path: str) -> str | None:
    """The value of the longest key that `path` begins with."""
    return steps.get(max((key for key in steps if path.startswith(key)), key=len, default=""))


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
    parser.add_argument("--target", choices=PRODUCTS, default="embedded")
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
