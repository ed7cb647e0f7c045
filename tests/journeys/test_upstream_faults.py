"""A provider that lies, breaks or hangs: the client gets a whole answer or a well-formed error, and the log says which (R14).

And clients that leave in the midst of an answer: at any byte, each is recorded, and the provider let go (R15, A29).
The long forms, which also judge times: `python -m tests.faults upstream` and `leave`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import leaving
from tests.support.certificates import Certificate
from tests.support.clients import audit_lines
from tests.support.dialects import ANTHROPIC_MESSAGES, DIALECTS, OPENAI_CHAT, OPENAI_RESPONSES, OWN_CHAT, Dialect
from tests.support.leaving import (
    CHUNKS,
    LONG_ANSWER,
    PAUSE_S,
    leave_at,
    length_of_a_whole_stream,
    places_in,
    under_way,
)
from tests.support.nginx import PrivateNginx
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider
from tests.support.redis_server import PrivateRedis
from tests.support.running_proxy import RunningProxy
from tests.support.upstream_faults import (
    ENDS,
    IMPATIENT,
    UNLIMITED,
    attempt_all,
    every_case,
    one_of_each,
    write_models_file,
    wrong_among,
)


@pytest.fixture(scope="module")
def far_end() -> Iterator[Provider]:
    with Provider(stream_chunks=5) as provider:
        yield provider


@pytest.fixture(scope="module")
def direct(far_end: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    """One worker, reached without anything in front; providers of every format."""
    home = short_folder / "faults"
    with RunningProxy(home, {**UNLIMITED, **IMPATIENT, **write_models_file(home, far_end, Mode)}) as proxy:
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
        **write_models_file(home, far_end, Mode),
        "DATABASE_URL": postgresql.create_database(),
        "REDIS_URL": redis_server.url,
        "WORKERS": "2",
    }
    front = PrivateNginx(short_folder / "faults-nginx", certificate, socket=home / "web.sock")
    proxy = RunningProxy(home, settings, on_unix_socket=True, front_url=front.base_url, authority=certificate.authority)
    with front, proxy:
        yield proxy


@pytest.fixture(scope="module")
def slow_end() -> Iterator[Provider]:
    """Says many words, one after the other."""
    with Provider(reply_text=LONG_ANSWER, stream_chunks=CHUNKS, stream_pause_s=PAUSE_S) as provider:
        yield provider


@pytest.fixture(scope="module")
def patient(slow_end: Provider, short_folder: Path) -> Iterator[RunningProxy]:
    home = short_folder / "left"
    models = write_models_file(home, slow_end, [dialect.name for dialect in DIALECTS])
    with RunningProxy(home, {**UNLIMITED, **models}) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("shape", "dialects", "at_bytes"),
    [("direct", DIALECTS, (0, 1, 100, 250, 400, 900, 1_300)), ("fronted", (OPENAI_CHAT,), (0, 250))],
    ids=["direct", "fronted"],
)
def test_whatever_the_provider_does_the_client_gets_a_whole_answer_and_the_log_the_truth(
    request: pytest.FixtureRequest, shape: str, dialects: tuple[Dialect, ...], at_bytes: tuple[int, ...]
) -> None:
    proxy = request.getfixturevalue(shape)
    key = proxy.shared_api_key
    workers = proxy.worker_pids()
    cases = one_of_each(every_case(dialects, at_bytes=at_bytes))

    tried = attempt_all(proxy, cases, key=key, at_once=32)

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


@pytest.mark.parametrize(
    ("dialect", "provider"),
    # Each door once with what passes through, and each format of a provider with what is translated.
    [
        pytest.param(dialect, provider, id=f"{dialect.name}-{provider}")
        for dialect, provider in (
            (OWN_CHAT, "openai"),
            (OPENAI_CHAT, "openai"),
            (OPENAI_CHAT, "anthropic"),
            (OPENAI_RESPONSES, "gemini"),
            (ANTHROPIC_MESSAGES, "anthropic"),
            (ANTHROPIC_MESSAGES, "cohere"),
        )
    ],
)
def test_whoever_leaves_at_any_byte_is_recorded_as_gone_and_the_provider_is_let_go(
    patient: RunningProxy, slow_end: Provider, dialect: Dialect, provider: str
) -> None:
    key, model = patient.shared_api_key, f"{provider}/{dialect.name}"
    whole = length_of_a_whole_stream(patient, dialect, key=key, model=model)
    slow_end.clear()

    left = leave_at(patient, dialect, places_in(whole, step=whole // 40), key=key, model=model)

    wrong, _ = leaving.wrong_among(patient, slow_end, left, model=model, length=whole)
    assert not wrong, "\n".join(wrong)
    assert len(left) > 30
    _comes_to_rest(patient)


def _comes_to_rest(proxy: RunningProxy) -> None:
    """No request is under way any more: every slot was given back."""
    wait_until(lambda: under_way(proxy) == 0, what="no request is under way")
