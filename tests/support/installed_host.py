"""The product as scripts/install leaves it on a clean Debian, and what its operator and its clients do with it."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.support.certificates import Certificate, make_certificate
from tests.support.clients import Answer, ask
from tests.support.debian_machine import DebianMachine
from tests.support.debian_roots import ROOT
from tests.support.host_world import PROVIDER_NAME, World
from tests.support.programs import ServerFailed, wait_until

DOMAIN = "llm.example.test"
SETTINGS = Path("etc/secure_llm_proxy")
WEB, AUDIT, SOCKET = "secure_llm_proxy.service", "secure-llm-audit.service", "secure_llm_proxy.socket"
_INSTALL_PATIENCE_S = 600.0
_ASKED_IN_A_ROW = 8


def export_source(folder: Path) -> Path:
    """What a clone of this tree would hold, the changes that are not committed yet included, in `folder`."""
    folder.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        capture_output=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    subprocess.run(
        ["tar", "-C", str(ROOT), "--null", "--files-from=-", "--ignore-failed-read", "-cf", str(folder / "all.tar")],
        input=listed, check=True, timeout=120, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run(["tar", "-C", str(folder), "-xf", str(folder / "all.tar")], check=True, timeout=120)
    (folder / "all.tar").unlink()
    return folder


@dataclass
class InstalledHost:
    """A machine after scripts/install. A `Door` for clients; `manage` is the operator's command on it."""

    machine: DebianMachine
    world: World
    certificate: Certificate
    domain: str
    said: str = ""  # what the installer printed
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        return f"https://{self.domain}"

    def client_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate.authority))

    @cached_property
    def key(self) -> str:
        """An API key that the operator made for tests that don't care whose it is."""
        self.manage("create-user", "--username", "tests", "--email", "tests@example.test", "--role", "member")
        return self.new_key("tests")

    def new_key(self, user: str) -> str:
        told = self.manage_json("create-api-key", "--user", user, "--name", "tests")
        key = told["key"]
        assert isinstance(key, str)
        return key

    def manage(self, *arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.machine.run("secure-llm-proxy", *arguments, check=check, stdin=stdin, timeout=180)

    def manage_json(self, *arguments: str) -> dict[str, object]:
        told = json.loads(self.manage(*arguments, "--json").stdout)
        assert isinstance(told, dict)
        return told

    def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: bytes | object | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return ask(self, method, path, key=key, body=body, headers=headers)

    def chat(self, text: str = "Is all well?") -> Answer:
        body = {"model": "test-model", "messages": [{"role": "user", "content": text}]}
        return self.ask("POST", "/v1/chat/completions", key=self.key, body=body)

    def set_environment(self, **values: str) -> None:
        """Add settings to the web service's file, as an operator's editor would; they count from its next start."""
        path = self.machine.files / SETTINGS / "env"
        lines = [line for line in path.read_text("utf-8").splitlines() if line.partition("=")[0] not in values]
        path.write_text("\n".join([*lines, *(f"{name}={value}" for name, value in values.items())]) + "\n", "utf-8")

    def wait_until_ready(self, seconds: float = 120.0) -> None:
        """Return when every worker, as far as chance shows them, says that everything is in place. Raises ServerFailed
        with what the services said.
        """

        def is_ready() -> bool:
            try:
                return all(self.ask("GET", "/health/ready").status == 200 for _ in range(_ASKED_IN_A_ROW))
            except OSError:
                return False

        try:
            wait_until(is_ready, what="the installed service is ready", seconds=seconds)
        except ServerFailed as failure:
            failure.add_note(self.machine.journal(WEB, AUDIT))
            raise


def install(
    machine: DebianMachine, world: World, folder: Path, *more: str, domain: str = DOMAIN, source: str = "/src"
) -> InstalledHost:
    """Run scripts/install of `source`, a folder in a clean machine, with a certificate of the test's authority, and name it
    the provider.
    """
    certificate = make_certificate(folder / "tls", names=f"DNS:{domain}", days=90)
    handed_over = machine.files / "srv" / "handed-over"
    handed_over.mkdir()
    for file, name in (
        (certificate.certificate, "tls.pem"),
        (certificate.key, "tls.key"),
        (world.certificate.authority, "provider-authority.pem"),
    ):
        (handed_over / name).write_bytes(file.read_bytes())
    (handed_over / "tls.key").chmod(0o600)
    told = machine.run(
        "sh", f"{source}/scripts/install", "--offline", "/wheels", "--domain", domain,
        "--tls-cert", "/srv/handed-over/tls.pem", "--tls-key", "/srv/handed-over/tls.key", *more,
        timeout=_INSTALL_PATIENCE_S,
    )  # fmt: skip
    host = InstalledHost(machine, world, certificate, domain, said=told.stdout + told.stderr)
    authority = SETTINGS / "provider-authority.pem"
    machine.run("install", "-m", "0644", "/srv/handed-over/provider-authority.pem", f"/{authority}")
    secret = machine.files / SETTINGS / "credentials" / "llm_api_key"
    secret.write_text("sk-test-provider")
    secret.chmod(0o600)
    host.set_environment(
        LLM_API_URL=world.provider_url,
        LLM_CA_FILE=f"/{authority}",
        LLM_PRIVATE_HOSTS=PROVIDER_NAME,
        # Journeys share one address and one key; a test of limits says its own.
        RATE_LIMIT_PER_MINUTE="6000",
        RATE_LIMIT_BURST="1000",
        ADDRESS_RATE_LIMIT_PER_MINUTE="60000",
        ADDRESS_RATE_LIMIT_BURST="10000",
        # A restart of the writer takes longer where two of these machines and their tests share a few cores.
        AUDIT_PATIENCE_S="30",
    )
    machine.run("systemctl", "restart", WEB)
    host.wait_until_ready()
    return host
