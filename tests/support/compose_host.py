"""Containers as a compose file describes them, started by systemd-nspawn where no container engine can run.

Read from the file and kept: command, user and groups, environment, volumes, binds, tmpfs, the read-only root file system, no
capabilities and no new privileges, no network for `network_mode: none`, health checks, SIGTERM to process 1. Not kept: networks
(containers share the tests' one, under the services' names), limits, restart policies, the order of `depends_on`.

Images that can't be had without a registry (nginx, Redis) are stood for by this system's own programs, in a read-only view of
its files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.product_image import Image
from tests.support.programs import ServerFailed, wait_until

_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Z_]+)(?::([-?])([^}]*))?\})")
_PATIENCE_S = 120.0


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """The text of a compose file as compose reads it. Raises KeyError with what the file says about a variable it needs."""

    def word(found: re.Match[str]) -> str:
        dollar, name, kind, more = found.groups()
        if dollar:
            return "$"
        if value := variables.get(name):
            return value
        if kind == "?":
            raise KeyError(more)
        return more or ""

    return _VARIABLE.sub(word, text)


def read_compose(files: list[Path], variables: Mapping[str, str]) -> dict[str, Any]:
    """The services of the files, a later file's keys over an earlier one's; lists and mappings are joined."""
    merged: dict[str, Any] = {}
    for file in files:
        for name, service in yaml.safe_load(interpolated(file.read_text("utf-8"), variables))["services"].items():
            before = merged.setdefault(name, {})
            for key, value in service.items():
                if isinstance(value, dict) and isinstance(before.get(key), dict):
                    before[key] = {**before[key], **value}
                elif key == "volumes" and key in before:
                    before[key] = [*before[key], *value]
                else:
                    before[key] = value
    return merged


@dataclass
class Container:
    """A running one: `leader` is its process 1, as seen from here."""

    name: str
    process: subprocess.Popen[bytes]
    leader: int
    identity: list[str]
    environment: dict[str, str]
    log: Path

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def exec(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """As `docker exec`: in the container, as its user, with its environment and groups."""
        values = [f"{name}={value}" for name, value in self.environment.items()]
        return subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "env", "-i", *values, *self.identity, *command],
            input=stdin, capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
        )  # fmt: skip

    def stop(self, patience_s: float = 60.0, with_signal: signal.Signals = signal.SIGTERM) -> int:
        """The signal to process 1, and its exit code. Raises ServerFailed when it takes longer than the grace time."""
        if self.process.poll() is None:
            os.kill(self.leader, with_signal)
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise ServerFailed(f"{self.name} did not stop in {patience_s:.0f} s:\n{self.said()[-3000:]}") from None


@dataclass
class ComposeHost:
    """`with ComposeHost(...) as host:` whatever was started is killed when the block ends; volumes are folders in `folder`.

    `hosts` are further names; the services' own lead to 127.0.0.1.
    """

    files: list[Path]
    image: Image
    folder: Path
    prefix: str
    variables: Mapping[str, str] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)
    _running: list[Container] = field(default_factory=list)
    _borrowed: Path | None = None

    def __enter__(self) -> Self:
        self.services = read_compose(self.files, self.variables)
        for name in ("volumes", "logs", "empty"):
            (self.folder / name).mkdir(parents=True)
        hosts = "".join(f"127.0.0.1 {name}\n" for name in ("localhost", *self.services))
        (self.folder / "hosts").write_text(hosts, "ascii")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for container in reversed(self._running):
            if container.process.poll() is None:
                os.kill(container.leader, signal.SIGKILL)
                container.process.wait(30)
        if self._borrowed is not None:
            subprocess.run(["umount", str(self._borrowed)], check=False, timeout=30)
            subprocess.run(["umount", str(self._borrowed.parent)], check=False, timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / name

    def start(self, service: str) -> Container:
        """Its process 1 runs; whether it is healthy, ask."""
        log = self.folder / "logs" / service
        command, identity, environment = self._command(service, [])
        with log.open("ab") as output:
            # As engines do, so that /dev/stdout can be opened by its name.
            os.chown(log, int(identity[1].partition("=")[2]), -1)
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        leader = 0

        def has_begun() -> bool:
            nonlocal leader
            if process.poll() is not None:
                message = f"{service} ended with {process.returncode}: {log.read_text('utf-8', 'replace')[-3000:]}"
                raise ServerFailed(message)
            for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split():
                try:
                    line = Path(f"/proc/{child}/cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    # One of nspawn's helpers, which has ended meanwhile.
                    continue
                # nspawn's own child becomes ours with setpriv's exec and the command's.
                if line and not line.startswith((b"systemd-nspawn", b"(sd-", b"setpriv")):
                    leader = int(child)
            return leader != 0

        wait_until(has_begun, what=f"the container {service} has begun")
        container = Container(service, process, leader, identity, environment, log)
        self._running.append(container)
        return container

    def run(self, service: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """As `docker compose run --rm SERVICE ARGUMENTS`; without arguments the service's own command."""
        command, _, _ = self._command(service, list(arguments))
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=_PATIENCE_S
        )  # fmt: skip

    def health(self, container: Container) -> subprocess.CompletedProcess[str]:
        """What the service's health check, or the image's, says."""
        described = self.services[container.name]
        test = described["healthcheck"]["test"] if "healthcheck" in described else ["CMD", *self.image.health]
        return container.exec(*(["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:]))

    def wait_until_healthy(self, container: Container, seconds: float = 60.0) -> None:
        def healthy() -> bool:
            if container.process.poll() is not None:
                raise ServerFailed(f"{container.name} ended: {container.said()[-3000:]}")
            return self.health(container).returncode == 0

        try:
            wait_until(healthy, what=f"{container.name} is healthy", seconds=seconds)
        except ServerFailed as failure:
            failure.add_note(f"{self.health(container)}\n{container.said()[-4000:]}")
            raise

    def _command(self, service: str, arguments: list[str]) -> tuple[list[str], list[str], dict[str, str]]:
        described = self.services[service]
        ours = described["image"].startswith("secure-llm-proxy:")
        root = self.image.root if ours else self._this_system()
        given = {name: str(value) for name, value in described.get("environment", {}).items()}
        environment = {**(self.image.environment if ours else {"PATH": os.environ["PATH"]}), **given}
        user, _, group = (described.get("user") or self.image.user).partition(":")
        groups = described.get("group_add", [])
        assert described["read_only"]
        assert described["cap_drop"] == ["ALL"]
        identity = ["setpriv", f"--reuid={user}", f"--regid={group or user}"]
        identity += [f"--groups={','.join(groups)}" if groups else "--clear-groups"]
        identity += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "--read-only"]
        command += [f"--machine={self.prefix}-{service}", "-D", str(root), "--resolv-conf=off", "--timezone=off"]
        command += [f"--bind-ro={self.folder / 'hosts'}:/etc/hosts"]
        if described.get("network_mode") == "none":
            command += ["--private-network"]
        command += [
            f"--tmpfs={each}" for each in described.get("tmpfs", []) if (root / each[1:].partition(":")[0]).exists()
        ]
        command += [argument for volume in described.get("volumes", []) for argument in self._mount(volume, root)]
        command += [f"--setenv={name}={value}" for name, value in environment.items()]
        if ours:
            command += [f"--chdir={self.image.working_directory}"]
        entry = described.get("entrypoint", self.image.entrypoint if ours else [])
        words = arguments or described.get("command") or (self.image.command if ours else [])
        return [*command, *identity, *entry, *words], identity, environment

    def _mount(self, volume: str | dict[str, Any], root: Path) -> list[str]:
        if isinstance(volume, dict):
            source, target, read_only = Path(volume["source"]), volume["target"], volume.get("read_only", False)
        else:
            first, target, *options = volume.split(":")
            read_only = options == ["ro"]
            if first.startswith("."):
                source = (self.files[0].parent / first).resolve()
            else:
                source = self.volume(first)
                if not source.exists():
                    source.mkdir()
                    # A new volume takes owner and mode of the image's folder.
                    if (inside := root / target.lstrip("/")).is_dir():
                        found = inside.stat()
                        os.chown(source, found.st_uid, found.st_gid)
                        source.chmod(found.st_mode & 0o7777)
        return [f"--bind{'-ro' if read_only else ''}={source}:{target}"]

    def _this_system(self) -> Path:
        """A read-only view of this system's files, with the places that compose mounts something at."""
        if self._borrowed is None:
            # On a file system of its own: layers may not lie in one another.
            layer = self.folder / "empty"
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(layer)], check=True, timeout=30)
            self._borrowed = layer / "view"
            places = layer / "places"
            for service in self.services.values():
                for volume in service.get("volumes", []):
                    target = volume["target"] if isinstance(volume, dict) else volume.split(":")[1]
                    place = places / target.lstrip("/")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.touch() if place.suffix else place.mkdir(exist_ok=True)
            self._borrowed.mkdir()
            subprocess.run(
                ["mount", "-t", "overlay", "-o", f"ro,lowerdir={places}:/", "overlay", str(self._borrowed)],
                check=True, timeout=30,
            )  # fmt: skip
        return self._borrowed


def processes_of(container: Container) -> list[dict[str, str]]:
    """`environ` and `cmdline` of every process in the container."""
    own = Path(f"/proc/{container.leader}/ns/pid").readlink()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "ns" / "pid").readlink() == own:
                found.append(
                    {name: (folder / name).read_bytes().decode("utf-8", "replace") for name in ("environ", "cmdline")}
                )
        except OSError:
            continue
    return found


def status_of(container: Container) -> dict[str, str]:
    """What /proc says of the container's process 1."""
    lines = Path(f"/proc/{container.leader}/status").read_text("utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def json_of(done: subprocess.CompletedProcess[str]) -> Any:  # noqa: ANN401  whatever the command printed
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)
