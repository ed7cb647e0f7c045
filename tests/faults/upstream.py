"""R14, R15, A10: providers that fail in every way, clients that leave at every tenth byte, requests that two parsers could read
differently. The first two ask the whole product over real sockets, the last one its corridor.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.faults.outcome import Outcome, Progress, Say
from tests.support import leaving, upstream_faults
from tests.support.clients import audit_lines
from tests.support.dialects import DIALECTS
from tests.support.leaving import CHUNKS, LONG_ANSWER, PAUSE_S, leave_at, length_of_a_whole_stream, places_in
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.running_proxy import RunningProxy
from tests.support.seen_and_sent import Differential
from tests.support.upstream_faults import (
    IMPATIENT,
    TOTAL_S,
    UNLIMITED,
    Tried,
    attempt_all,
    every_case,
    write_models_file,
)

_AT_ONCE = 40
_LEAVERS_AT_ONCE = 24
# Reading the log takes longer the more there is in it.
_JUDGED_EVERY = 10


@contextmanager
def _running(
    folder: Path, provider: Provider, models: Iterable[str], settings: Mapping[str, str]
) -> Iterator[RunningProxy]:
    home = folder / "proxy"
    with RunningProxy(home, {**UNLIMITED, **settings, **write_models_file(home, provider, models)}) as proxy:
        yield proxy


def upstream(outcome: Outcome, folder: Path, say: Say) -> None:
    """R14. Every mode, plain and streamed, through every door to providers of every format; a round asks all of them once, with
    other bytes for cuts.
    """
    dice, progress = random.Random(outcome.seed), Progress(say, outcome.rounds)
    with Provider(stream_chunks=5) as provider, _running(folder, provider, Mode, IMPATIENT) as proxy:
        key, workers = proxy.shared_api_key, proxy.worker_pids()
        tried: list[Tried] = []
        for round_ in range(1, outcome.rounds + 1):
            cases = every_case(DIALECTS, at_bytes=[dice.randrange(2_000) for _ in range(4)])
            dice.shuffle(cases)
            tried += attempt_all(proxy, cases, key=key, at_once=_AT_ONCE)
            outcome.count("asked", len(cases))
            provider.clear()
            if round_ % _JUDGED_EVERY == 0 or round_ == outcome.rounds:
                _judge(outcome, proxy, tried)
                tried.clear()
            progress.at(round_, f"{outcome.measured['asked']:,.0f} requests, {len(outcome.broken)} wrong")
        outcome.count("modes", len(Mode))
        outcome.bar(met=proxy.worker_pids() == workers, otherwise="a worker has died")
        verified = proxy.command("audit", "verify", check=False)
        outcome.bar(met=verified.returncode == 0, otherwise=f"verify: {verified.stdout[-400:]}")


def _judge(outcome: Outcome, proxy: RunningProxy, tried: list[Tried]) -> None:
    wait_until(lambda: leaving.under_way(proxy) == 0, what="no request is under way")
    ends = {line["rid"]: line["st"] for line in audit_lines(proxy) if line.get("ty") == "llm.end"}
    for sentence in upstream_faults.wrong_among(tried, ends, strictly=outcome.judges_times):
        outcome.bar(met=False, otherwise=sentence)
    outcome.time("answered_s_max", max(one.seconds for one in tried), bar_s=TOTAL_S + 1)


def leave(outcome: Outcome, folder: Path, say: Say) -> None:
    """R15. Through each door, from providers of each format, clients leave at every tenth byte of a stream, until as many as
    there are rounds have left.
    """
    progress = Progress(say, outcome.rounds)
    pairs = [(dialect, kind) for dialect in DIALECTS for kind in upstream_faults.PROVIDERS]
    names = [dialect.name for dialect in DIALECTS]
    provider = Provider(reply_text=LONG_ANSWER, stream_chunks=CHUNKS, stream_pause_s=PAUSE_S)
    with provider, _running(folder, provider, names, {}) as proxy:
        key, workers = proxy.shared_api_key, proxy.worker_pids()
        share = -(-outcome.rounds // len(pairs))
        for number, (dialect, kind) in enumerate(pairs):
            model = f"{kind}/{dialect.name}"
            whole = length_of_a_whole_stream(proxy, dialect, key=key, model=model)
            provider.clear()
            places = list(places_in(whole, step=10))
            wanted = [places[(number + at * len(places) // share) % len(places)] for at in range(share)]
            began_s = time.monotonic()
            left = leave_at(proxy, dialect, wanted, key=key, model=model, at_once=_LEAVERS_AT_ONCE)
            wrong, slowest = leaving.wrong_among(proxy, provider, left, model=model, length=whole)
            for sentence in wrong:
                outcome.bar(met=False, otherwise=sentence)
            outcome.count("left", len(left))
            outcome.time("upstream_closed_s_max", slowest.get("upstream_closed_s", 0.0), bar_s=1.0)
            outcome.time("recorded_s_max", slowest.get("recorded_s", 0.0), bar_s=5.0)
            progress.at(int(outcome.measured["left"]), f"{model}: {time.monotonic() - began_s:.0f} s")
        wait_until(lambda: leaving.under_way(proxy) == 0, what="no request is under way")
        outcome.bar(met=proxy.worker_pids() == workers, otherwise="a worker has died")
        verified = proxy.command("audit", "verify", check=False)
        outcome.bar(met=verified.returncode == 0, otherwise=f"verify: {verified.stdout[-400:]}")


def requests(outcome: Outcome, folder: Path, say: Say) -> None:
    """A10. Generated requests of every format, written for a provider of every kind: what was seen is what is sent."""
    del folder
    differential, progress = Differential(outcome.seed), Progress(say, outcome.rounds)
    for done in range(0, outcome.rounds, 1_000):
        differential.run(min(1_000, outcome.rounds - done))
        progress.at(done + 1_000, f"{len(differential.wrong)} wrong")
    for name, number in differential.counts.items():
        outcome.count(name, number)
    for sentence in differential.wrong[:100]:
        outcome.bar(met=False, otherwise=sentence)
