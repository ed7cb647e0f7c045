"""The running product behind nginx with TLS, played providers behind it, and official SDKs in front, each in a process of its own.

A program of tests/contract/programs makes all calls of one SDK and prints what they gave; it runs once, and tests look at its
cases one by one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOMY
from tests.support.certificates import Certificate
from tests.support.format_server import FormatServer
from tests.support.nginx import PrivateNginx
from tests.support.programs import find_program
from tests.support.provider import Mode
from tests.support.provider_formats import openai
from tests.support.provider_formats.playing import Failure
from tests.support.running_proxy import RunningProxy
from tests.support.sdk_environments import NODE, SDK2, SDK3

PROGRAMS = Path(__file__).resolve().parent / "programs"
_PROGRAM_PATIENCE_S = 180.0
# Whatever an SDK would like to fetch besides (prices, versions, traces), it meets a closed port.
_NO_PHONING_HOME = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "localhost,127.0.0.1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}
# Models of the played OpenAI, one for each way in which it can fail, and one that never answers.
MODELS = (*openai.MODELS, "gpt-4o-mini", *(f"fail-{failure}" for failure in Failure), Mode.HANG_BEFORE_HEADERS)


@pytest.fixture(scope="session")
def played() -> Iterator[FormatServer]:
    """Every provider, played by one server."""
    with FormatServer() as server:
        yield server


@pytest.fixture(scope="session")
def front(played: FormatServer, certificate: Certificate, short_folder: Path) -> Iterator[RunningProxy]:
    """The product behind nginx, one worker, embedded database; its provider is the played OpenAI."""
    home = short_folder / "contract"
    settings = {
        **ROOMY,
        "LLM_API_URL": played.url("openai"),
        "LLM_API_KEY": played.key("openai"),
        "LLM_MODELS": ",".join(MODELS),
    }
    nginx = PrivateNginx(short_folder / "contract-nginx", certificate, socket=home / "web.sock")
    proxy = RunningProxy(home, settings, on_unix_socket=True, front_url=nginx.base_url, authority=certificate.authority)
    with nginx, proxy:
        yield proxy


@dataclass(frozen=True, slots=True)
class Gave:
    """What one case of a program gave: a value, or how an error looked to its caller."""

    value: object

    @property
    def error(self) -> dict[str, object]:
        assert isinstance(self.value, dict), self.value
        assert "raised" in self.value, self.value
        return self.value

    def raised(self, name: str) -> dict[str, object]:
        """The error, which must be of the class `name` or below."""
        error = self.error
        classes = error["classes"]
        assert isinstance(classes, list)
        assert name in classes, error
        return error


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that a program gave, by case."""

    cases: dict[str, object]

    def __getitem__(self, name: str) -> object:
        """What a case gave that went well."""
        value = self.cases[name]
        assert not (isinstance(value, dict) and "raised" in value), value
        return value

    def case(self, name: str) -> Gave:
        return Gave(self.cases[name])


Run = Callable[[str, str], Told]


@pytest.fixture(scope="session")
def run_program(front: RunningProxy, certificate: Certificate) -> Run:
    """`run_program("openai_calls.py", "sdk3")` runs the program once per session, however often it is asked for.

    Environments: sdk3, sdk2, node; made when first asked for.
    """

    @cache
    def run(program: str, environment: str) -> Told:
        command = {
            "sdk3": lambda: [SDK3.interpreter],
            "sdk2": lambda: [SDK2.interpreter],
            "node": lambda: [find_program("node", package="nodejs")],
        }[environment]()
        variables = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(front.home),
            "LANG": "C.UTF-8",
            "BASE_URL": front.base_url,
            "API_KEY": front.shared_api_key,
            "MODEL": openai.MODELS[0],
            # the operating system's own store, which the SDKs trust, with one authority more
            "SSL_CERT_FILE": str(certificate.authority),
            "NODE_EXTRA_CA_CERTS": str(certificate.authority),
            **_NO_PHONING_HOME,
        }
        if environment == "node":
            variables["NODE_PATH"] = str(NODE.modules)
        done = subprocess.run(
            [*command, str(PROGRAMS / program)],
            env=variables, cwd=front.home, capture_output=True, text=True, check=False, timeout=_PROGRAM_PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{program}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        told = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(told, dict)
        return Told(told)

    return run
