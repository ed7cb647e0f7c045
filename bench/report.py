"""The figures as tables: medians over the rounds, with smallest and largest behind them, and ratios beside their bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Protocol, TypeVar

from bench.figures import (
    DiskFigures,
    GrowthFigures,
    NotMeasured,
    OwnTimeFigures,
    PlainFigures,
    StartFigures,
    StreamFigures,
)


class _OfTarget(Protocol):
    @property
    def target(self) -> str: ...


F = TypeVar("F")
T = TypeVar("T", bound=_OfTarget)

# Always true of this harness, whatever was chosen for a run.
_NEVER_MEASURED = (
    NotMeasured("streams over TLS to the client", "the stream client speaks plain HTTP"),
    NotMeasured("growth with rules", "there are none yet"),
    NotMeasured("two workers without load beside them", "the load has no core of its own then"),
    NotMeasured("a power cut", "processes are killed in the tests, machines are not"),
)
_MANY_CLIENTS = 1000
_MANY_STREAMS = 1000
_TLS = "-tls"
_FLAT = 1.1
_PRODUCTS = ("embedded", "embedded-tmpfs", "clustered", "edge", "chat", "messages", "embedded-tls")


@dataclass
class Results:
    """One run. `machine` and `versions` say what it was measured on; `problems` what makes it invalid.

    `others_share` is what other programs took meanwhile, in cores: the more, the less the figures are worth.
    """

    quick: bool
    rounds: int
    seconds: int
    began: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    titles: Mapping[str, str]
    load_generator: str
    others_share: float = 0.0
    plain: list[PlainFigures] = field(default_factory=list)
    streams: list[StreamFigures] = field(default_factory=list)
    starts: list[StartFigures] = field(default_factory=list)
    disk: list[DiskFigures] = field(default_factory=list)
    growth: list[GrowthFigures] = field(default_factory=list)
    own_time: OwnTimeFigures | None = None
    not_measured: list[NotMeasured] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        told = asdict(self)
        told["not_measured"] = [asdict(missing) for missing in self.left_out()]
        told["valid"] = not self.problems
        return told

    def left_out(self) -> list[NotMeasured]:
        """Everything that the tables lack: what this run found missing, did not ask for, or no run of this harness has."""
        targets = {each.target for each in self.starts}
        missing = list(self.not_measured)
        if not any(name.endswith(_TLS) for name in targets):
            missing.append(NotMeasured("TLS to the provider", "no target over TLS was asked for"))
        if "chat" not in targets:
            missing.append(NotMeasured("/chat", "not asked for"))
        if "messages" not in targets:
            missing.append(NotMeasured("translation between formats", "not asked for"))
        if not any(each.clients >= _MANY_CLIENTS for each in self.plain):
            missing.append(NotMeasured("256 and 1,000 clients", "--clients 16,256,1000 asks for them"))
        if not any(each.streams >= _MANY_STREAMS for each in self.streams):
            missing.append(NotMeasured("1,000 streams and more", "--streams 1000,1500 asks for them"))
        if not self.growth:
            missing.append(NotMeasured("growth: keys, clients, audit log, workers", "--growth asks for it"))
        if self.own_time is None:
            missing.append(NotMeasured("own time against an outside clock", "--own-time asks for it"))
        return [*missing, *_NEVER_MEASURED]


def report(results: Results) -> str:
    """Everything as Markdown."""
    parts = [
        _heading(results),
        _plain_table(results),
        _latency_table(results),
        _stream_table(results),
        _start_table(results),
        _disk_line(results),
        _ratio_table(results),
        _own_time_table(results),
        _growth_table(results),
        _missing(results),
    ]
    if results.problems:
        parts.append("**INVALID:**\n" + "\n".join(f"- {problem}" for problem in results.problems))
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(results: Results) -> str:
    lines = [
        f"Measured {results.began}, {results.rounds} alternated rounds of {results.seconds} s, load by {results.load_generator}."
    ]
    lines += [f"- {name}: {value}" for name, value in {**results.machine, **results.versions}.items()]
    lines.append(f"- other programs took {results.others_share:.2f} cores meanwhile")
    if results.quick:
        lines.append("- A quick run: it shows that everything works. Its times say little.")
    return "\n".join(lines)


def _plain_table(results: Results) -> str:
    rows = []
    for target, clients, figures in _by_clients(results):
        if not any(each.cpu_us for each in figures):
            cpu = split = aside = "-"
        else:
            cpu = spread([each.whole_cpu_us for each in figures], "{:.0f}")
            split = _split([each.cpu_us for each in figures])
            aside = _split([each.aside_us for each in figures]) or "-"
        rate = spread([each.requests_per_s for each in figures], "{:,.0f}")
        rows.append([results.titles[target], str(clients), cpu, split, aside, rate])
    return table(
        "Plain requests", ["target", "clients", "CPU µs/request", "by process", "not counted", "requests/s"], rows
    )


def _latency_table(results: Results) -> str:
    rows = []
    for target, clients, figures in _by_clients(results):
        direct = _plain_of(results, f"direct{_TLS}" if target.endswith(_TLS) else "direct", clients)
        row = [results.titles[target], str(clients)]
        for pick in (_p50, _p99):
            row.append(spread([pick(each) / 1000 for each in figures], "{:.2f}"))
            added = (
                "-"
                if not direct or target in {"direct", f"direct{_TLS}"}
                else f"{(_median(figures, pick) - _median(direct, pick)) / 1000:.2f}"
            )
            row.append(added)
        rows.append(row)
    return table("Latency, ms", ["target", "clients", "p50", "added p50", "p99", "added p99"], rows)


def _stream_table(results: Results) -> str:
    rows = []
    for target in _targets(results.streams):
        for size in sorted({each.streams for each in results.streams if each.target == target}):
            figures = [each for each in results.streams if each.target == target and each.streams == size]
            rows.append(
                [
                    results.titles[target],
                    str(size),
                    spread([each.whole_cpu_us for each in figures], "{:.1f}") if figures[0].cpu_us else "-",
                    _split([each.cpu_us for each in figures]) or "-",
                    f"{median(each.core_share for each in figures):.2f}",
                    f"{median(each.delivered for each in figures):.0%}",
                    _first_chunks(figures),
                    f"{median(each.delay_p99_ms for each in figures):.1f}",
                    str(sum(each.refused + each.broken for each in figures)),
                    f"{median(each.kb_per_stream for each in figures):.0f}" if figures[0].cpu_us else "-",
                ]
            )
    over_tls = (
        ""
        if not any(each.target.endswith(_TLS) for each in results.streams)
        else ("\n\nOver TLS the load's core encrypts too: what nginx does not deliver there, nobody can.")
    )
    heads = ["target", "streams", "CPU µs/chunk", "by process", "core", "delivered", "first chunk p50 / p99 ms"]
    return table("Streams of 20 chunks/s", [*heads, "delay p99 ms", "failed", "kB/stream"], rows) + over_tls


def _first_chunks(figures: Sequence[StreamFigures]) -> str:
    """A short run may have seen no stream begin."""
    seen = [each for each in figures if each.first_chunk_p99_ms >= 0]
    if not seen:
        return "-"
    p99 = spread([each.first_chunk_p99_ms for each in seen], "{:.1f}")
    return f"{median(each.first_chunk_p50_ms for each in seen):.1f} / {p99}"


def _start_table(results: Results) -> str:
    rows = []
    for target in _targets(results.starts):
        figures = [each for each in results.starts if each.target == target]
        if target in {"direct", f"direct{_TLS}"}:
            continue
        rows.append(
            [
                results.titles[target],
                spread([each.first_answer_s for each in figures], "{:.2f}"),
                spread([each.whole_idle_mb for each in figures], "{:.0f}"),
                _split([each.idle_mb for each in figures]),
            ]
        )
    return table("Start and idle memory", ["target", "first answer after s", "idle PSS MB", "by process"], rows)


def _disk_line(results: Results) -> str:
    if not results.disk:
        return ""
    p50 = spread([each.p50_us / 1000 for each in results.disk], "{:.2f}")
    p99 = spread([each.p99_us / 1000 for each in results.disk], "{:.2f}")
    return f"The disk itself, 3 kB appended and fdatasync: p50 {p50} ms, p99 {p99} ms."


@dataclass(frozen=True, slots=True)
class _Bar:
    """A line of DESIGN §8: the product's figure over a peer's, at most `must`."""

    what: str
    peer: str
    must: float
    figure: Callable[[Results, str], float | None]


def _ratio_table(results: Results) -> str:
    rows = []
    for product in _PRODUCTS:
        # over the same kind of upstream
        kind = _TLS if product.endswith(_TLS) else ""
        for bar in _BARS:
            ours, theirs = bar.figure(results, product), bar.figure(results, f"{bar.peer}{kind}")
            if ours is None or not theirs:
                continue
            ratio = ours / theirs
            rows.append(
                [
                    results.titles[product],
                    bar.what,
                    f"{bar.peer}{kind}",
                    _ratio(ratio),
                    _ratio(bar.must),
                    _verdict(ratio, bar.must),
                ]
            )
    rows += _sync_row(results)
    rows += _absolute_rows(results)
    return table(
        "Against the bars (must) of the design", ["product", "figure", "against", "ratio", "at most", ""], rows
    )


def _sync_row(results: Results) -> list[list[str]]:
    """What durability adds to a lone request: two synced records, each a sync of the disk and a hop to the writer."""
    disk, memory = _plain_of(results, "embedded", 1), _plain_of(results, "embedded-tmpfs", 1)
    if not disk or not memory or not results.disk:
        return []
    added_ms = (_median(disk, _p50) - _median(memory, _p50)) / 1000
    bar_ms = 2 * (median(each.p50_us for each in results.disk) / 1000 + 0.15)
    return [
        [
            results.titles["embedded"],
            "sync's part of p50, 1 client",
            "2 (fdatasync + 0.15 ms)",
            f"{added_ms:.2f} ms",
            f"{bar_ms:.2f} ms",
            _verdict(added_ms, bar_ms),
        ]
    ]


def _absolute_rows(results: Results) -> list[list[str]]:
    """Bars that compare with nobody. Idle memory is that of master, worker and writer, as the bar says."""
    title = results.titles.get("embedded", "")
    starts = [each for each in results.starts if each.target == "embedded"]
    rows = []
    if starts:
        memory = median(sum(each.idle_mb[part] for part in ("master", "worker", "audit writer")) for each in starts)
        beside = median(each.idle_mb["supervisor"] for each in starts)
        rows.append(
            [title, f"idle MB, without supervisor's {beside:.0f}", "", f"{memory:.0f}", "140", _verdict(memory, 140)]
        )
        first = median(each.first_answer_s for each in starts)
        rows.append([title, "start to first answer, s", "", f"{first:.2f}", "1.20", _verdict(first, 1.2)])
    for target, memory_bar in (("embedded", 60), (f"embedded{_TLS}", 95)):
        rows += _stream_bars(results, target, memory_bar)
    return rows


def _stream_bars(results: Results, target: str, memory_bar: float) -> list[list[str]]:
    """At the most streams that it was asked to hold; the bars are meant for 1,000."""
    held = [each for each in results.streams if each.target == target]
    if not held:
        return []
    most = max(each.streams for each in held)
    held = [each for each in held if each.streams == most]
    title = results.titles[target]
    memory = median(each.kb_per_stream for each in held)
    rows = [
        [title, f"kB/stream at {most} streams", "", f"{memory:.0f}", f"{memory_bar:.0f}", _verdict(memory, memory_bar)]
    ]
    seen = [each.first_chunk_p99_ms for each in held if each.first_chunk_p99_ms >= 0]
    if seen:
        late = median(seen)
        name = f"first chunk p99 at {most:,} streams (bar: at 1,000), ms"
        rows.append([title, name, "", f"{late:.0f}", "100", _verdict(late, 100)])
    return rows


def _own_time_table(results: Results) -> str:
    """The product's own account beside the outside clock's, and whether they agree at all."""
    own = results.own_time
    if own is None:
        return ""
    rows = [
        ["the client's clock, whole request", f"{own.outside_ms:.3f}"],
        ["the provider's clock, request read to answer written", f"{own.provider_ms:.3f}"],
        ["added by the proxy: the first less the second, request by request", f"{own.added_ms:.3f}"],
        ["X-SLP-Overhead-Ms", f"{own.header_ms:.3f}"],
        ["**not seen by it**: kernel, waking up, the record after the header", f"{own.added_ms - own.header_ms:.3f}"],
        ["X-SLP-Overhead-Ms, mean", f"{own.header_mean_ms:.3f}"],
        [f"slp_overhead_seconds, mean of {own.counted:,}", f"{own.counted_ms:.3f}"],
    ]
    title = f"Own time by an outside clock: medians of {own.requests:,} requests by one client, ms"
    return table(title, ["what", "ms"], rows)


def _growth_table(results: Results) -> str:
    rows = []
    for kind in dict.fromkeys(each.kind for each in results.growth):
        mine = [each for each in results.growth if each.kind == kind]
        base = (
            median(each.plain.whole_cpu_us for each in mine if each.base) if any(each.base for each in mine) else None
        )
        for case in dict.fromkeys(each.case for each in mine):
            figures = [each for each in mine if each.case == case]
            cpu = [each.plain.whole_cpu_us for each in figures]
            ratio = median(cpu) / base if base else None
            rows.append(
                [
                    kind,
                    case,
                    str(figures[0].plain.clients),
                    spread(cpu, "{:.0f}"),
                    "-" if ratio is None else f"{ratio:.2f}",
                    _verdict(ratio, _FLAT) if ratio is not None and figures[0].flat else "",
                    _split([each.plain.cpu_us for each in figures]),
                    _split([each.plain.aside_us for each in figures]) or "-",
                    spread([each.plain.requests_per_s for each in figures], "{:,.0f}"),
                    " / ".join(f"{median(pick(each.plain) for each in figures) / 1000:.2f}" for pick in (_p50, _p99)),
                    f"{median(each.first_answer_s for each in figures):.2f}",
                ]
            )
    heads = ["what grows", "case", "clients", "CPU µs/request", "ratio", "at most 1.10", "by process", "not counted"]
    text = table("Growth", [*heads, "requests/s", "p50 / p99 ms", "start s"], rows)
    if any(each.kind.startswith("workers") for each in results.growth):
        text += (
            "\n\nWorkers on two cores share the second one with load, mock provider, Redis and PostgreSQL: CPU time per request "
            "can be compared, requests/s only show that the second worker takes what the load leaves."
        )
    return text


def _verdict(value: float, bar: float) -> str:
    return "met" if value <= bar else f"missed: {value / bar:.1f} times the bar"


def _cpu_at(clients: int) -> Callable[[Results, str], float | None]:
    def figure(results: Results, target: str) -> float | None:
        found = _plain_of(results, target, clients)
        return _median(found, lambda each: each.whole_cpu_us) if found else None

    return figure


def _added_p50(results: Results, target: str) -> float | None:
    """Only the product's own part counts here: its audit log in memory."""
    found, direct = _plain_of(results, target, 1), _plain_of(results, "direct", 1)
    if not found or not direct or target in {"embedded", "clustered", "edge", "chat", "messages", f"embedded{_TLS}"}:
        return None
    return _median(found, _p50) - _median(direct, _p50)


def _cpu_per_chunk(results: Results, target: str) -> float | None:
    """At the most streams that both this target and the product were asked to hold."""
    ours = f"embedded{_TLS}" if target.endswith(_TLS) else "embedded"
    sizes = {each.streams for each in results.streams if each.target == ours}
    found = [each for each in results.streams if each.target == target and each.streams in sizes]
    most = max((each.streams for each in found), default=0)
    return median(each.whole_cpu_us for each in found if each.streams == most) if found else None


_BARS = (
    _Bar("CPU/request, 16 clients", "litellm", 1 / 35, _cpu_at(16)),
    _Bar("CPU/request, 16 clients", "portkey", 1 / 5, _cpu_at(16)),
    _Bar("CPU/request, 16 clients", "tensorzero", 1.1, _cpu_at(16)),
    _Bar("CPU/request, 16 clients", "nginx", 13, _cpu_at(16)),
    _Bar("CPU/request, 64 clients", "litellm", 1 / 55, _cpu_at(64)),
    _Bar("CPU/request, 64 clients", "portkey", 1 / 6.5, _cpu_at(64)),
    _Bar("CPU/request, 64 clients", "tensorzero", 0.8, _cpu_at(64)),
    _Bar("CPU/request, 64 clients", "nginx", 10, _cpu_at(64)),
    _Bar("added p50, 1 client", "tensorzero", 1.4, _added_p50),
    _Bar("CPU/chunk, most streams", "nginx", 2.3, _cpu_per_chunk),
    _Bar("CPU/chunk, most streams", "tensorzero", 0.85, _cpu_per_chunk),
)


def _missing(results: Results) -> str:
    lines = [f"- {missing.what}: {missing.reason}" for missing in results.left_out()]
    return "**Not measured**\n\n" + "\n".join(lines)


def _by_clients(results: Results) -> Iterable[tuple[str, int, list[PlainFigures]]]:
    for target in _targets(results.plain):
        for clients in sorted({each.clients for each in results.plain if each.target == target}):
            yield target, clients, _plain_of(results, target, clients)


def _plain_of(results: Results, target: str, clients: int) -> list[PlainFigures]:
    return [each for each in results.plain if each.target == target and each.clients == clients]


def _targets(figures: Sequence[T]) -> list[str]:
    return list(dict.fromkeys(each.target for each in figures))


def _p50(figures: PlainFigures) -> float:
    return figures.p50_us


def _p99(figures: PlainFigures) -> float:
    return figures.p99_us


def _median(figures: Sequence[F], pick: Callable[[F], float]) -> float:
    return median(pick(each) for each in figures)


def spread(values: Sequence[float], form: str) -> str:
    """The median, and smallest to largest when there are several."""
    told = form.format(median(values))
    return told if len(values) == 1 else f"{told} ({form.format(min(values))} to {form.format(max(values))})"


def _split(each_round: Sequence[Mapping[str, float]]) -> str:
    """Medians by part; parts that cost nothing are left out."""
    parts = {part: median(figures.get(part, 0.0) for figures in each_round) for part in each_round[0]}
    return ", ".join(f"{part} {value:.1f}" for part, value in parts.items() if f"{value:.1f}" != "0.0")


def _ratio(value: float) -> str:
    return f"1/{1 / value:.1f}" if 0 < value < 0.5 else f"{value:.2f}"  # noqa: PLR2004


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"**{title}**", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
