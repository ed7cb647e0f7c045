"""The running product behind nginx with TLS, played providers behind it, and official SDKs in front, each in a process of its own.

A program of tests/contract/programs makes all calls of one SDK and prints what they gave; it runs once, and tests look at its
cases one by one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

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
# A model of each provider for chat, and one for embeddings.
CHAT_MODELS = {
    "openai": "gpt-6",
    "anthropic": "claude-opus-5-5",
    "gemini": "gemini-3-pro",
    "cohere": "command-a-03-2025",
    "mistral": "mistral-large-latest",
    "groq": "llama-3.3-70b-versatile",
    "openrouter": "openai/gpt-6",
    "together": "meta-llama/Llama-4-Maverick",
    "azure": "my-gpt-deployment",
    "azure_deployments": "my-gpt-deployment",
}
EMBEDDING_MODELS = {
    "openai": "text-embedding-3-small",
    "gemini": "gemini-embedding-001",
    "cohere": "embed-v4.0",
    "mistral": "mistral-embed",
    "openrouter": "openai/text-embedding-3-small",
    "together": "BAAI/bge-large-en-v1.5",
    "azure": "my-embedding-deployment",
    "azure_deployments": "my-embedding-deployment",
}
# What a provider's name alone stands for, and the played OpenAI's own models.
OWN_MODELS = (*openai.MODELS, "gpt-4o-mini", *(f"fail-{failure}" for failure in Failure), Mode.HANG_BEFORE_HEADERS)


@pytest.fixture(scope="session")
def played() -> Iterator[FormatServer]:
    """Every provider, played by one server."""
    with FormatServer() as server:
        yield server


@pytest.fixture(scope="session")
def front(played: FormatServer, certificate: Certificate, short_folder: Path) -> Iterator[RunningProxy]:
    """The product behind nginx, one worker, embedded database, and every played provider by a models file.

    The model `groq` is a chat model of Groq's, `groq-embedding` one for embeddings, `groq-fail-server` one that fails so;
    models of the played OpenAI keep their own names.
    """
    home = short_folder / "contract"
    home.mkdir()
    (home / "models.yaml").write_text(json.dumps(models_file(played)), "utf-8")
    keys = {f"PLAYED_{name.upper()}_KEY": played.key(name) for name in played.providers}
    settings = {**ROOMY, **keys, "MODELS_FILE": str(home / "models.yaml")}
    nginx = PrivateNginx(short_folder / "contract-nginx", certificate, socket=home / "web.sock")
    proxy = RunningProxy(home, settings, on_unix_socket=True, front_url=nginx.base_url, authority=certificate.authority)
    with nginx, proxy:
        yield proxy


def models_file(played: FormatServer) -> dict[str, object]:
    """The file as JSON, which YAML holds."""
    providers: dict[str, object] = {}
    for kind in CHAT_MODELS:
        name = "azure" if kind == "azure_deployments" else kind
        url = played.origin(name) if name == "azure" else played.url(name)
        configured = {"kind": kind, "base_url": url, "api_keys": f"env:PLAYED_{name.upper()}_KEY"}
        providers[kind] = configured if kind != "azure_deployments" else {**configured, "api_version": "2024-10-21"}
    models = {name: _route("openai", name) for name in OWN_MODELS}
    for kind, model in CHAT_MODELS.items():
        models[kind] = _route(kind, model)
        models[f"{kind}-thinking"] = _route(kind, f"{model}-thinking")
        models |= {f"{kind}-fail-{failure}": _route(kind, f"fail-{failure}") for failure in Failure}
        models[f"{kind}-hangs"] = _route(kind, Mode.HANG_BEFORE_HEADERS)
    models |= {f"{kind}-embedding": _route(kind, model) for kind, model in EMBEDDING_MODELS.items()}
    return {"providers": providers, "models": models}


def _route(provider: str, model: str) -> dict[str, object]:
    return {"routes": [{"provider": provider, "model": str(model)}]}


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


class Run(Protocol):
    def __call__(self, program: str, environment: str, provider: str = ...) -> Told:
        """Run `program` in `environment` (sdk3, sdk2, node), asking for models of `provider`; once per session."""
        ...


@pytest.fixture(scope="session")
def run_program(front: RunningProxy, certificate: Certificate) -> Run:
    """See `Run`. Environments are made when first asked for."""

    @cache
    def run(program: str, environment: str, provider: str = "") -> Told:
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
            # of no provider in particular: by the model's own name, as a client of OpenAI knows it
            "MODEL": provider or openai.MODELS[0],
            "FAILING": f"{provider}-fail-" if provider else "fail-",
            "HANGING": f"{provider}-hangs" if provider else Mode.HANG_BEFORE_HEADERS,
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
