"""`bench/hunt`: does anybody ever get what is somebody else's? Marked requests, misbehaving clients and provider.

Every answer is checked for foreign markers, for its own, and for the order of its parts; afterwards every record of the
audit log is opened: one start and one end for each exchange, each holding the marker of its own request and no other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.hunt_clients import Door, Findings, Mixup, hunt
from bench.marked_provider import MARKER
from bench.plants import plant_keys
from bench.processes import allow_open_files, choose_cores, running_on
from bench.side_by_side import folder_on_disk
from bench.targets import Product, ProductShape, TargetFailed
from bench.upstream import MarkedUpstream
from secure_llm_proxy.audit import log_lines
from secure_llm_proxy.audit.format import KeyLine, RecordLine, SegmentLine
from secure_llm_proxy.audit.reading import BodyOpener
from tests.support.certificates import make_certificate
from tests.support.programs import ServerFailed, ServerMissing

_KEYS = 8
_SHOWN = 20
_SETTLE_S = 1.0
_SETTLE_TURNS_MAX = 30
_SHAPES: Mapping[str, ProductShape] = {
    shape.name: shape
    for shape in (
        ProductShape("embedded", "SQLite, one worker"),
        ProductShape("clustered", "PostgreSQL, Redis, two workers", with_servers=True, workers=2),
    )
}
# A provider that falls silent is given up quickly, so that the hunt goes on.
_IMPATIENT = {"UPSTREAM_FIRST_BYTE_TIMEOUT_S": "1.5", "UPSTREAM_IDLE_TIMEOUT_S": "1.5"}


@dataclass
class AuditCount:
    """What the log says. `unpaired` are exchanges without exactly one start and one end."""

    exchanges: int = 0
    complete: int = 0
    unpaired: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mixups: list[Mixup] = field(default_factory=list)


@dataclass
class Outcome:
    """All of one hunt; `is_clean` decides the exit status."""

    findings: Findings
    audit: AuditCount
    provider: Mapping[str, int]
    seconds: float

    @property
    def is_clean(self) -> bool:
        return not (self.findings.mixups or self.audit.mixups or self.audit.unpaired or self.audit.missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 nothing found, 1 a mix-up or records that don't pair up, 2 usage or something missing."""
    given = _parse(arguments)
    try:
        outcome = run_hunt(given)
    except ServerMissing as error:
        print(error, file=sys.stderr)
        return 2
    except (TargetFailed, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1
    print(report(outcome, given))
    if given.json is not None:
        given.json.write_text(json.dumps(_as_json(outcome), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 0 if outcome.is_clean else 1


def run_hunt(given: argparse.Namespace) -> Outcome:
    """The product started, hunted, stopped, and its log read. Raises `TargetFailed`, `ServerFailed`."""
    cores = choose_cores()
    allow_open_files()
    with contextlib.ExitStack() as opened:
        folder = folder_on_disk(given.directory)
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        tls = make_certificate(folder / "upstream-certificate") if given.tls else None
        upstream = opened.enter_context(MarkedUpstream(cores, folder, tls=tls))
        shape = _SHAPES[given.target]
        settings = {**_IMPATIENT, **dict(pair.split("=", 1) for pair in given.set)}
        shape = ProductShape(
            shape.name, shape.title, with_servers=shape.with_servers, workers=shape.workers, settings=settings
        )
        product = Product(shape, cores=cores, folder=folder, provider=upstream.provider)
        opened.callback(product.discard)
        product.prepare()
        keys = plant_keys(product.running.environment, _KEYS)
        opened.callback(product.stop)
        product.start()
        door = Door("127.0.0.1", product.endpoint.port, keys, late_surplus=given.late_surplus)
        began_s = time.monotonic()

        def progress(findings: Findings) -> None:
            rate = findings.asked / (time.monotonic() - began_s)
            print(
                f"{findings.asked:,} of {given.requests:,} asked, {rate:,.0f}/s, {len(findings.mixups)} mix-ups",
                file=sys.stderr, flush=True,
            )  # fmt: skip

        with running_on(cores.load):
            findings = asyncio.run(
                hunt(door, requests=given.requests, clients=given.clients, seed=given.seed, progress=progress)
            )
        seconds = time.monotonic() - began_s
        _await_settled(product)
        provider = upstream.report()
        product.stop()
        audit = check_audit(
            product.running.instance / "audit", product.running.environment["AUDIT_KEK"], findings.answered
        )
    return Outcome(findings, audit, provider, seconds)


def _await_settled(product: Product) -> None:
    """The last exchanges, whose clients have left, are recorded too."""
    before = -1
    for _ in range(_SETTLE_TURNS_MAX):
        time.sleep(_SETTLE_S)
        records = product.audit_records()
        if records == before:
            return
        before = records or 0


def check_audit(directory: Path, key_text: str, answered: Mapping[str, str]) -> AuditCount:
    """Open every record of the log in `directory`, with the key store beside it. `answered` are the markers of whole answers by
    request id.
    """
    count = AuditCount()
    opener = BodyOpener(key_text, keys_directory=directory.with_name("audit-keys"))
    starts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    markers: dict[str, bytes] = {}
    for item in log_lines(directory):
        if isinstance(item.line, SegmentLine):
            opener.enter(item.line.kek_id)
        if isinstance(item.line, KeyLine):
            opener.learn(item.line)
        if not isinstance(item.line, RecordLine) or item.line.type not in {"llm.start", "llm.end"}:
            continue
        record = item.line
        (starts if record.type == "llm.start" else ends)[record.exchange_id] += 1
        count.complete += record.clear.get("st") == "complete"
        body = opener.open(record)
        found = set(MARKER.findall(body))
        # the start holds the request and so its marker; the end, where there was an answer, the answer's
        own = markers.setdefault(record.exchange_id, min(found, default=b"-"))
        if found - {own} or (record.type == "llm.start" and not found):
            count.mixups.append(
                Mixup(f"{record.type} holds {sorted(found)}", own.decode(), body[:400].decode("utf-8", "replace"))
            )
    count.exchanges = len(starts)
    count.unpaired = [each for each in starts | ends if starts[each] != 1 or ends[each] != 1]
    count.missing = [each for each in answered if each not in starts]
    count.mixups += [
        Mixup(f"the record of the exchange is {markers[each].decode()}'s", marker, each)
        for each, marker in answered.items()
        if each in markers and markers[each] != marker.encode()
    ]
    return count


def report(outcome: Outcome, given: argparse.Namespace) -> str:
    """The outcome as Markdown."""
    findings, audit, provider = outcome.findings, outcome.audit, outcome.provider
    rows = [
        ("requests sent", findings.asked),
        ("answered with 200", len(findings.answered)),
        ("refused, the provider being at fault or gone", findings.refused),
        *((f"… by clients: {what}", times) for what, times in findings.tally.most_common()),
        *((f"… by deed: {what}", times) for what, times in findings.refusals.most_common()),
        ("requests that reached the provider", provider["asked"]),
        ("… of them again", provider["asked_again"]),
        ("connections to the provider", provider["connections"]),
        ("exchanges in the audit log, each opened", audit.exchanges),
        ("… ended as complete", audit.complete),
        ("… without exactly one start and one end", len(audit.unpaired)),
        ("answers without a record", len(audit.missing)),
        ("**mix-ups in answers**", len(findings.mixups)),
        ("**mix-ups in the audit log**", len(audit.mixups)),
    ]
    upstream = "TLS" if given.tls else "plain"
    lines = [
        f"Mix-up hunt of `{given.target}`, {upstream} upstream, {given.clients} clients, seed {given.seed}:",
        f"{outcome.seconds:.0f} s, {findings.asked / outcome.seconds:,.0f} requests/s.",
        "",
        "| what | count |",
        "|---|---|",
        *(f"| {what} | {times:,} |" for what, times in rows),
    ]
    for mixup in [*findings.mixups, *audit.mixups][:_SHOWN]:
        lines += ["", f"MIX-UP {mixup.marker}: {mixup.what}", f"    {mixup.seen!r}"]
    if audit.unpaired:
        lines += ["", f"UNPAIRED {', '.join(audit.unpaired[:_SHOWN])}"]
    return "\n".join(lines)


def _as_json(outcome: Outcome) -> dict[str, object]:
    findings = outcome.findings
    return {
        "clean": outcome.is_clean,
        "seconds": outcome.seconds,
        "asked": findings.asked,
        "answered": len(findings.answered),
        "refused": findings.refused,
        "tally": dict(findings.tally),
        "refusals": dict(findings.refusals),
        "mixups": [asdict(each) for each in findings.mixups],
        "provider": dict(outcome.provider),
        "audit": asdict(outcome.audit),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/hunt",
        description="Send marked requests through the product, with clients and a provider that misbehave, and look for "
        "anything that reaches the wrong client or the wrong audit record.",
    )
    parser.add_argument("--requests", type=int, default=200_000, help="marked requests (default %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (default %(default)s)")
    parser.add_argument("--target", choices=tuple(_SHAPES), default="embedded", help="shape of the product")
    parser.add_argument("--tls", action="store_true", help="TLS to the provider")
    parser.add_argument(
        "--seed", type=int, default=1, help="what the clients' choices are drawn from (default %(default)s)"
    )
    parser.add_argument(
        "--late-surplus",
        action="store_true",
        help="the provider also sends answers that nobody asked for a moment late, which HTTP/1.1 can't tell from asked ones",
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the product")
    parser.add_argument("--quick", action="store_true", help="2,000 requests, and install nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome to FILE too")
    parser.add_argument("--directory", type=Path, help="folder on a disk (default: the temporary folder)")
    given = parser.parse_args(arguments)
    if given.quick:
        given.requests = min(given.requests, 2_000)
    return given


if __name__ == "__main__":
    sys.exit(main())
