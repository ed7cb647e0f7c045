"""Does a request cost the same when the deployment has grown? Keys, clients, audit directory, workers.

Cases of one kind take turns within each round, each on a product of its own that was made large before the first round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.figures import GrowthFigures, NotMeasured
from bench.measuring import Bench
from bench.plants import DiskTooSmall, require_space
from bench.targets import Product, ProductShape, TargetFailed
from tests.support.programs import ServerFailed

KINDS = ("keys", "clients", "audit", "workers")
_WARM_UP_CLIENTS = 16


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """What is to be measured, and how large is large. Clients: the last of `clients` is the large number."""

    kinds: Sequence[str]
    rounds: int
    seconds: int
    keys: int
    audit_gib: float
    clients: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Case:
    kind: str
    case: str
    product: str
    clients: int = 16
    base: bool = False
    flat: bool = False


def measure_growth(
    bench: Bench, plan: GrowthPlan, say: Callable[[str], None]
) -> tuple[list[GrowthFigures], list[NotMeasured], list[str]]:
    """The figures, what could not be measured, and what makes them invalid."""
    figures: list[GrowthFigures] = []
    missing: list[NotMeasured] = []
    problems: list[str] = []
    cases = list(_cases(plan))
    if "audit" in plan.kinds:
        try:
            require_space(bench.folder, plan.audit_gib)
        except DiskTooSmall as error:
            missing.append(NotMeasured(f"growth with {plan.audit_gib:g} GiB of audit log", str(error)))
            cases = [case for case in cases if case.product != "audit-large"]
    with contextlib.ExitStack() as opened:
        products: dict[str, Product] = {}
        for name in dict.fromkeys(case.product for case in cases):
            say(f"growth: preparing {name}")
            shape = _shapes(plan)[name]
            product = Product(shape, cores=bench.cores, folder=bench.folder, provider=bench.upstream.provider)
            opened.callback(product.discard)
            try:
                product.prepare()
            except (TargetFailed, ServerFailed, DiskTooSmall) as error:
                problems.append(f"{name}: {error}")
                continue
            products[name] = product
        for round_ in range(1, plan.rounds + 1):
            for name, product in products.items():
                say(f"growth, round {round_} of {plan.rounds}: {name}")
                try:
                    figures += _measured(bench, plan, product, [case for case in cases if case.product == name], round_)
                except (TargetFailed, ServerFailed, OSError) as error:
                    problems.append(f"{name}, round {round_}: {error}")
    problems += [
        f"{each.kind}, {each.case}: {each.plain.refused} refused, {each.plain.broken} broken"
        for each in figures
        if each.plain.refused or each.plain.broken
    ]
    return figures, missing, problems


def _measured(
    bench: Bench, plan: GrowthPlan, product: Product, cases: Sequence[_Case], round_: int
) -> Iterator[GrowthFigures]:
    """One start of one product, and every case that it serves. A load serves all cases of its number of clients."""
    try:
        started = bench.start(product, round_)
        bench.plain_load(product.endpoint, _WARM_UP_CLIENTS, 1)
        loads = {}
        for case in cases:
            if case.clients not in loads:
                loads[case.clients] = bench.plain(product, round_, case.clients, plan.seconds)
            yield GrowthFigures(case.kind, case.case, case.base, case.flat, started.first_answer_s, loads[case.clients])
    finally:
        product.stop()


def _cases(plan: GrowthPlan) -> Iterator[_Case]:
    """Several cases may share a product."""
    keys = f"{plan.keys:,} keys"
    if "keys" in plan.kinds:
        for store, prefix in (("SQLite", "sqlite"), ("PostgreSQL + Redis", "postgresql")):
            kind = f"API keys, {store}"
            yield _Case(kind, "1 key", f"{prefix}-1", base=True)
            yield _Case(kind, f"{keys}, one of them used", f"{prefix}-many", flat=True)
            yield _Case(kind, f"{keys}, random ones used", f"{prefix}-random", flat=True)
    if "clients" in plan.kinds:
        for clients in plan.clients:
            base = clients == plan.clients[0]
            yield _Case("clients at once", f"{clients:,}", "sqlite-1", clients=clients, base=base)
    if "audit" in plan.kinds:
        yield _Case("audit directory", "empty", "sqlite-1", base=True)
        yield _Case("audit directory", f"{plan.audit_gib:g} GiB", "audit-large", flat=True)
    if "workers" in plan.kinds:
        kind = "workers, PostgreSQL + Redis"
        yield _Case(kind, "1 worker, 1 core", "postgresql-1", clients=64, base=True)
        yield _Case(kind, "1 worker, 2 cores", "one-worker-both", clients=64)
        yield _Case(kind, "2 workers, 2 cores", "two-workers-both", clients=64)


def _shapes(plan: GrowthPlan) -> dict[str, ProductShape]:
    return {
        shape.name: shape
        for shape in (
            ProductShape("sqlite-1", "SQLite, 1 key"),
            ProductShape("sqlite-many", "SQLite, many keys", keys=plan.keys),
            ProductShape("sqlite-random", "SQLite, many keys, random ones", keys=plan.keys, random_keys=True),
            ProductShape("audit-large", "SQLite, large audit log", audit_gib=plan.audit_gib),
            ProductShape("postgresql-1", "PostgreSQL + Redis, 1 key", with_servers=True),
            ProductShape("postgresql-many", "PostgreSQL + Redis, many keys", with_servers=True, keys=plan.keys),
            ProductShape(
                "postgresql-random",
                "PostgreSQL + Redis, many keys, random ones",
                with_servers=True,
                keys=plan.keys,
                random_keys=True,
            ),
            ProductShape("one-worker-both", "PostgreSQL + Redis, 1 worker", with_servers=True, both_cores=True),
            ProductShape(
                "two-workers-both", "PostgreSQL + Redis, 2 workers", with_servers=True, workers=2, both_cores=True
            ),
        )
    }
