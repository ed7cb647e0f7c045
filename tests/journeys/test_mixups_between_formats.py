"""No answer reaches another client whatever it is translated from and to, whoever leaves and whatever breaks (R18)."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.clients import Answer, connection_to
from tests.support.dialects import DIALECTS
from tests.support.leaving import under_way
from tests.support.programs import wait_until
from tests.support.provider import Mode, Provider, ReceivedRequest
from tests.support.running_proxy import RunningProxy
from tests.support.upstream_faults import PROVIDERS, UNLIMITED, write_models_file

_MARK = re.compile(rb"mark-[0-9]+-[0-9]+-end")
_BREAKING = (
    Mode.RESET_AT_BYTE,
    Mode.EARLY_CLOSE,
    Mode.LENGTH_TOO_SHORT,
    Mode.LATE_LAST_CHUNK,
    Mode.ERROR,
    Mode.HALF_AN_EVENT,
)


class MarkRepeating(Provider):
    """Says to each request the mark that stands in it, in whichever format. One thread serves one connection."""

    def __init__(self) -> None:
        self._said = threading.local()
        super().__init__(stream_chunks=5)

    @property
    def reply_text(self) -> str:
        return str(getattr(self._said, "text", ""))

    @reply_text.setter
    def reply_text(self, text: str) -> None:
        self._said.text = text

    def _answer(self, connection: socket.socket, request: ReceivedRequest) -> bool:
        marks = _MARK.findall(request.body)
        self.reply_text = marks[-1].decode() if marks else ""
        return super()._answer(connection, request)


@pytest.fixture(scope="module")
def repeating() -> Iterator[MarkRepeating]:
    with MarkRepeating() as provider:
        yield provider


@pytest.fixture(scope="module")
def proxy(repeating: MarkRepeating, short_folder: Path) -> Iterator[RunningProxy]:
    home = short_folder / "between"
    models = write_models_file(home, repeating, ["good", *_BREAKING])
    # With the product's own patience: none of these modes hangs, and a busy machine must not end a good stream.
    with RunningProxy(home, {**UNLIMITED, **models}) as running:
        yield running


class _Client:
    """Asks through one kept connection, each time through another door and of another provider, and leaves now and then."""

    def __init__(self, proxy: RunningProxy, number: int) -> None:
        self._proxy = proxy
        self._number = number
        self._dice = random.Random(number)
        self.foreign: list[str] = []
        self.seen: Counter[str] = Counter()

    def run(self, requests: int) -> None:
        done = 0
        while done < requests:
            with connection_to(self._proxy) as connection:
                connection.connect()
                stays = True
                while stays and done < requests:
                    done += 1
                    stays = self._once(connection, f"mark-{self._number}-{done}-end")

    def _once(self, connection: http.client.HTTPConnection, mark: str) -> bool:
        dialect, provider = self._dice.choice(DIALECTS), self._dice.choice(list(PROVIDERS))
        stream = self._dice.random() < 0.5
        model = "good" if self._dice.random() < 0.85 else self._dice.choice(_BREAKING)
        headers = {
            "Authorization": f"Bearer {self._proxy.shared_api_key}",
            "Content-Type": "application/json",
            "X-Correlation-ID": mark,
            **dialect.headers,
        }
        text = f"at_byte={self._dice.randrange(1_000)} {mark}"
        body = json.dumps(dialect.body(f"{provider}/{model}", text, stream)).encode()
        where = f"{mark} at {dialect.name} over {provider}, {model}, {'stream' if stream else 'plain'}"
        try:
            connection.request("POST", dialect.door, body=body, headers=headers)
            answer = connection.getresponse()
            leaves = self._dice.random() < 0.1
            read = answer.read(self._dice.randrange(1, 800)) if leaves else answer.read()
        except (OSError, http.client.HTTPException):
            self.seen["broken"] += 1
            return False
        if answer.getheader("X-Correlation-ID") != mark:
            self.foreign.append(f"{where}: headers of {answer.getheader('X-Correlation-ID')}")
        self.foreign += [f"{where}: holds {found!r}" for found in _MARK.findall(read) if found != mark.encode()]
        self.seen["left" if leaves else str(answer.status)] += 1
        if leaves:
            return False
        if answer.status == http.HTTPStatus.OK and model == "good":
            said = dialect.text_of(Answer(200, {}, read), stream=stream)
            if said != mark:
                self.foreign.append(f"{where}: was answered {said!r}")
        return answer.getheader("Connection") != "close"


def test_no_answer_reaches_another_client_between_all_doors_and_formats(proxy: RunningProxy) -> None:
    workers = proxy.worker_pids()
    clients = [_Client(proxy, number) for number in range(12)]

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: client.run(100), clients))

    seen = sum((client.seen for client in clients), Counter[str]())
    foreign = [found for client in clients for found in client.foreign]
    assert not foreign, "\n".join(foreign[:20])
    assert seen["200"] > 700, seen
    assert seen["left"] > 50
    assert seen["500"] == 0
    assert proxy.worker_pids() == workers
    wait_until(lambda: under_way(proxy) == 0, what="no request is under way")
