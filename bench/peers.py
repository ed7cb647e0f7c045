"""Other gateways, installed from their registries into the cache folder, run bare: no limits, no scan, no audit.

Versions are pinned here so that figures of different days can be compared. Each is what its vendor publishes for Python or
Node: TensorZero's own server binary is not on a package registry, its embedded HTTP server is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from bench.processes import Cores
from bench.targets import MODEL, Endpoint, OneServer
from bench.upstream import Provider

_INSTALL_PATIENCE_S = 900


class PeerNotInstalled(Exception):
    """Says why it could not be installed."""


class Peer(OneServer):
    """`home` is where it is installed; `version` the one pinned here. `does_tls`: it can trust the run's own authority."""

    version: ClassVar[str]
    installed_as: ClassVar[str]
    does_tls: ClassVar[bool] = False

    def __init__(self, cores: Cores, folder: Path, provider: Provider, cache: Path) -> None:
        tls = provider.authority is not None
        self.name = f"{self.installed_as}-tls" if tls else self.installed_as
        self.title = f"{type(self).title}, TLS upstream" if tls else type(self).title
        super().__init__(cores, folder)
        self.provider = provider
        self.home = cache / "peers" / f"{self.installed_as}-{self.version}"

    @property
    def is_installed(self) -> bool:
        return (self.home / "installed").exists()

    def install(self) -> None:
        """It is installed afterwards. Raises `PeerNotInstalled`."""
        if self.is_installed:
            return
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        for command in self.installation():
            try:
                done = subprocess.run(  # noqa: S603  our own argument list
                    command, cwd=self.home, capture_output=True, text=True, check=False, timeout=_INSTALL_PATIENCE_S
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise PeerNotInstalled(f"{command[0]}: {error}") from error
            if done.returncode != 0:
                raise PeerNotInstalled(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-300:]}")
        (self.home / "installed").touch()

    @abstractmethod
    def installation(self) -> Sequence[Sequence[str]]:
        """The commands that install it into `home`."""


class _PythonPeer(Peer):
    requirement: ClassVar[str]

    def installation(self) -> Sequence[Sequence[str]]:
        python = str(self.home / "venv" / "bin" / "python")
        options = ["--quiet", "--disable-pip-version-check", "--no-input"]
        return [
            [sys.executable, "-m", "venv", str(self.home / "venv")],
            [python, "-m", "pip", "install", *options, self.requirement],
        ]


class LiteLLM(_PythonPeer):
    """Its proxy without a database, one worker."""

    installed_as = "litellm"
    version = "1.106.2"
    title = f"LiteLLM {version}"
    requirement = f"litellm[proxy]=={version}"
    streams_max = 50
    _key = "sk-bench-litellm"

    def prepare(self) -> None:
        super().prepare()
        model = {"model": f"openai/{MODEL}", "api_base": self.provider.url, "api_key": "sk-bench"}
        configuration = {
            "model_list": [{"model_name": MODEL, "litellm_params": model}],
            "general_settings": {"master_key": self._key},
            "litellm_settings": {"telemetry": False, "set_verbose": False, "request_timeout": 600},
        }
        # JSON is YAML.
        (self.folder / "litellm.yaml").write_text(json.dumps(configuration), "utf-8")

    def command(self) -> Sequence[str]:
        return [
            str(self.home / "venv" / "bin" / "litellm"), "--config", str(self.folder / "litellm.yaml"),
            "--host", "127.0.0.1", "--port", str(self.port), "--num_workers", "1",
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str]:
        # its own list of prices, so that nothing is fetched from outside
        return {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.port, headers={"Authorization": f"Bearer {self._key}"})


# Portkey 1.15.2 on Node 20 answers every stream with 500, because it changes headers that Node holds immutable.
_PORTKEY_REPAIR = """\
const original = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const answer = await original(...request);
  if (!answer.headers.get("content-type")?.startsWith("text/event-stream")) return answer;
  return new Response(answer.body, { status: answer.status, headers: new Headers(answer.headers) });
};
"""


class Portkey(Peer):
    """Its open-source gateway on Node, with one repair without which it cannot stream."""

    installed_as = "portkey"
    version = "1.15.2"
    title = f"Portkey {version}"
    streams_max = 200

    def installation(self) -> Sequence[Sequence[str]]:
        return [
            [
                "npm",
                "install",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(self.home),
                f"@portkey-ai/gateway@{self.version}",
            ]
        ]

    def prepare(self) -> None:
        super().prepare()
        (self.folder / "repair.mjs").write_text(_PORTKEY_REPAIR, "utf-8")

    def command(self) -> Sequence[str]:
        server = self.home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
        return ["node", "--import", str(self.folder / "repair.mjs"), str(server), "--headless", f"--port={self.port}"]

    def environment(self) -> Mapping[str, str]:
        return {"NODE_ENV": "production"}

    @property
    def endpoint(self) -> Endpoint:
        headers = {
            "Authorization": "Bearer sk-bench",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": self.provider.url,
        }
        return Endpoint(self.port, headers=headers)


_TENSORZERO_CONFIGURATION = """\
[gateway]
observability.enabled = false
[models."{model}"]
routing = ["upstream"]
[models."{model}".providers.upstream]
type = "openai"
model_name = "{model}"
api_base = "{url}"
api_key_location = "env::OPENAI_API_KEY"
"""

_TENSORZERO_PROGRAM = """\
import pathlib, sys, time
from tensorzero.tensorzero import _start_http_gateway
gateway = _start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
)
pathlib.Path(sys.argv[2]).write_text(gateway.base_url)
while True:
    time.sleep(3600)
"""


class TensorZero(_PythonPeer):
    """The OpenAI-compatible HTTP server embedded in its Python client (Rust), observability off."""

    installed_as = "tensorzero"
    version = "2026.6.0"
    title = f"TensorZero {version}"
    requirement = f"tensorzero=={version}"
    does_tls = True

    def prepare(self) -> None:
        super().prepare()
        configuration = _TENSORZERO_CONFIGURATION.format(model=MODEL, url=self.provider.url)
        (self.folder / "tensorzero.toml").write_text(configuration, "utf-8")
        (self.folder / "serve.py").write_text(_TENSORZERO_PROGRAM, "utf-8")

    def start(self) -> None:
        (self.folder / "url").unlink(missing_ok=True)
        super().start()

    def command(self) -> Sequence[str]:
        python = str(self.home / "venv" / "bin" / "python")
        return [python, str(self.folder / "serve.py"), str(self.folder / "tensorzero.toml"), str(self.folder / "url")]

    def environment(self) -> Mapping[str, str]:
        authority = self.provider.authority
        trusted = {"SSL_CERT_FILE": str(authority)} if authority else {}
        return {"OPENAI_API_KEY": "sk-bench", **trusted}

    @property
    def endpoint(self) -> Endpoint:
        """It chooses its port itself and listens a moment after the start. Raises OSError until then."""
        url = (self.folder / "url").read_text("ascii")
        port = urlsplit(url).port
        if port is None:
            raise ConnectionError(f"TensorZero tells no port: {url!r}")
        return Endpoint(port, path="/openai/v1/chat/completions", model=f"tensorzero::model_name::{MODEL}")


PEERS: Mapping[str, type[Peer]] = {peer.installed_as: peer for peer in (LiteLLM, Portkey, TensorZero)}
