"""A provider that lies, breaks or hangs: the client gets a whole answer or a well-formed error, and the log says which (R14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import Certificate
from tests.support.clients import ask, audit_lines
from tests.support.dialects import DIALECTS, OPENAI_CHAT, Dialect
from tests.support.nginx import PrivateNginx
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy
from tests.support.upstream_faults import ENDS, IMPATIENT, UNLIMITED, attempt_all, every_case, wrong_among


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider(stream_chunks=5) as provider:
        yield provider


@pytest.fixture(scope="module")
def direct(far_end: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """One worker, reached without anything in front."""
    settings = {**UNLIMITED, **IMPATIENT, "LLM_API_URL": far_end.base_url, "LLM_API_KEY": "sk-test-provider"}
    with RunningProxy(short_folder / "faults", settings) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def fronted(
    far_end: Provider,
    postgresql: PrivatePostgreSQL,
    redis_server: PrivateRedis,
    certificate: Certificate,
    short_folder: Path,
) -> Iterator[RunningProxy]:
    """PostgreSQL, Redis, two workers behind nginx with TLS."""
    home = short_folder / "faults-host"
    settings = {
        **UNLIMITED,
        **IMPATIENT,
        "LLM_API_URL": far_end.base_url,
        "LLM_API_KEY": "sk-test-provider",
        "DATABASE_URL": postgresql.create_database(),
        "REDIS_URL": redis_server.url,
        "WORKERS": "2",
    }
    front = PrivateNginx(short_folder / "faults-nginx", certificate, socket=home / "web.sock")
    proxy = RunningProxy(home, settings, on_unix_socket=True, front_url=front.base_url, authority=certificate.authority)
    with front, proxy:
        yield proxy


@pytest.mark.parametrize(
    ("shape", "dialects"), [("direct", DIALECTS), ("fronted", (OPENAI_CHAT,))], ids=["direct", "fronted"]
)
def test_whatever_the_provider_does_the_client_gets_a_whole_answer_and_the_log_the_truth(
    request: pytest.FixtureRequest, shape: str, dialects: tuple[Dialect, ...]
) -> None:
    proxy = request.getfixturevalue(shape)
    key = proxy.shared_api_key
    workers = proxy.worker_pids()
    cases = every_case(dialects, at_bytes=(0, 1, 100, 250, 400, 900, 1_300))

    tried = attempt_all(proxy, cases, key=key, at_once=40)

    _comes_to_rest(proxy)
    lines = audit_lines(proxy)
    ends = {line["rid"]: line["st"] for line in lines if line.get("ty") == "llm.end"}
    assert len(tried) == len(cases)
    wrong = wrong_among(tried, ends)
    assert not wrong, "\n".join(wrong)
    assert proxy.worker_pids() == workers
    starts = Counter(str(line["id"]) for line in lines if line.get("ty") == "llm.start")
    assert Counter(str(line["sid"]) for line in lines if line.get("ty") == "llm.end") == starts


def test_every_mode_of_the_provider_has_an_expected_end() -> None:
    assert set(ENDS) == set(Mode)
    assert len(ENDS) >= 25


def _comes_to_rest(proxy: RunningProxy) -> None:
    """No request is under way any more: every slot was given back."""

    def under_way() -> object:
        counts = ask(proxy, "GET", "/security/status").json["security_metrics"]
        assert isinstance(counts, dict)
        return counts["active_clients"]

    wait_until(lambda: under_way() == 0, what="no request is under way")
