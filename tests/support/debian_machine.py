"""A Debian with a real systemd, booted from a clean root, thrown away afterwards.

`systemd-nspawn --boot` over an overlay: services, sandboxing, reboots, the journal and the firewall are the real ones. What
the kernel of these hosts does not give a container is not there: memory and task limits of units are accepted, not enforced.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.debian_roots import Release, root_of
from tests.support.programs import ServerFailed, wait_until

_REBOOT = 133  # systemd-nspawn(1), exit status
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INTERFACE = "host0"
# In a mount namespace of its own: systemd 257 boots on the unified hierarchy only, and this kernel may show the old one.
# A group of its own there: machines that shared one would find each other's processes in their units' groups.
_GROUPED = """
[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || { umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; }
own=$(mktemp -d "/sys/fs/cgroup/test-host-$1-XXXXXX") || exit 1
sh -c 'echo $$ >"$0/cgroup.procs"; shift; exec "$@"' "$own" "$@"
status=$?
find "$own" -depth -type d -exec rmdir {} + 2>/dev/null
exit "$status"
"""
# As long as the machine has not left this system's own root behind, this system's manager would answer; and its manager does
# not wait for the interface to have its address.
_STATE = """
grep -qx "$1" /etc/hostname || exit 1
[ -z "$3" ] || ip -o -4 address show dev "$2" | grep -qF " $3/" || exit 1
exec systemctl is-system-running
"""
_NETWORK = """\
[Match]
Name=host0
[Network]
Address={address}/24
Address={address6}/64
Gateway={gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


class CommandFailed(AssertionError):
    """A command inside the machine ended with another status than 0."""


class DebianMachine:
    """`with DebianMachine(release, folder, ...) as machine:` is booted until the block ends.

    `binds` are folders of this host that it sees read-only. With `address` it has an interface in the bridge `bridge` of the
    network that the tests run in; without, only loopback.
    """

    def __init__(
        self,
        release: Release,
        folder: Path,
        *,
        name: str,
        binds: Mapping[Path, str] | None = None,
        bridge: str | None = None,
        address: str = "",
        address6: str = "",
        gateway: str = "",
    ) -> None:
        self.release = release
        self.name = name
        self.address = address
        self.folder = folder
        self.files = folder / "root"
        self._binds = dict(binds or {})
        self._bridge = bridge
        self._address6 = address6
        self._gateway = gateway
        self._console = folder / "console.log"
        self._server: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._is_plugged_in = False

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._lay()
        try:
            self._configure()
            self._boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._server.poll() is None:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self._inside(["systemctl", "poweroff"], timeout=20)
            self._wait_for_end(40)
        self._unplug()
        if os.path.ismount(self.files):
            subprocess.run(["umount", str(self.files)], check=False, timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self,
        *command: str,
        check: bool = True,
        stdin: str = "",
        timeout: float = 120.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run it inside as root, with an environment of its own. Raises CommandFailed with its words when `check` and it failed."""
        done = self._inside(list(command), stdin=stdin, timeout=timeout, environment=environment)
        if check and done.returncode != 0:
            message = f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
            raise CommandFailed(message)
        return done

    def told(self, *command: str, timeout: float = 120.0) -> str:
        """What a command that must succeed prints, without the last line end."""
        return self.run(*command, timeout=timeout).stdout.rstrip("\n")

    def start(self, *command: str, output: Path) -> subprocess.Popen[bytes]:
        """Start it inside and go on; the caller ends it."""
        with output.open("wb") as file:
            return subprocess.Popen(self._enter(list(command)), stdout=file, stderr=file, stdin=subprocess.DEVNULL)

    def reboot(self) -> None:
        """Restart it from inside, as an operator would; returns when it is up again."""
        self._inside(["systemctl", "reboot"], timeout=60)
        # The web service alone may take a minute to end, and the audit writer ends after it.
        self._wait_for_end(180)
        if self._server is None or self._server.returncode != _REBOOT:
            raise ServerFailed(f"{self.name} did not reboot: {self._last_words()}")
        self._boot()

    def pull_the_plug(self) -> None:
        """Everything in it is killed at once, and it boots again."""
        os.kill(self._leader, signal.SIGKILL)
        self._wait_for_end(60)
        self._boot()

    def wait_for(self, *command: str, what: str, seconds: float = 60.0) -> None:
        """Return when the command succeeds."""
        wait_until(lambda: self.run(*command, check=False).returncode == 0, what=what, seconds=seconds)

    def main_pid(self, unit: str) -> int:
        return int(self.told("systemctl", "show", "--property=MainPID", "--value", unit))

    def restarts(self, unit: str) -> int:
        return int(self.told("systemctl", "show", "--property=NRestarts", "--value", unit))

    def journal(self, *units: str) -> str:
        """The newest lines of these units, with all that was said until now."""
        chosen = [argument for unit in units for argument in ("-u", unit)]
        self.write_journal()
        return self.run("journalctl", "--no-pager", "-n", "80", *chosen, check=False).stdout

    def write_journal(self) -> None:
        """Afterwards the journal can be read as far as anything was said: journald takes lines some time after they were."""
        self.run("journalctl", "--sync", check=False)

    def _lay(self) -> None:
        """The clean root with a layer of its own above; a copy where this file system can't have layers."""
        base = root_of(self.release)
        layers = [self.folder / name for name in ("upper", "work")]
        for each in (*layers, self.files):
            each.mkdir()
        told = f"lowerdir={base},upperdir={layers[0]},workdir={layers[1]}"
        if subprocess.run(["mount", "-t", "overlay", "-o", told, "overlay", str(self.files)], check=False).returncode:
            subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", str(self.files)], check=True, timeout=300)

    def _configure(self) -> None:
        etc = self.files / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
        if self._bridge is None:
            return
        # The name server is a thread of the tests, and a busy machine may lose a question. It is asked again soon: the product
        # has five seconds to look a name up and to connect.
        (etc / "resolv.conf").write_text(f"nameserver {self._gateway}\noptions timeout:1 attempts:3\n")
        network = etc / "systemd" / "network"
        network.mkdir(exist_ok=True)
        (network / "10-host0.network").write_text(
            _NETWORK.format(address=self.address, address6=self._address6, gateway=self._gateway)
        )
        wants = etc / "systemd" / "system" / "multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")

    def _boot(self) -> None:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _GROUPED, "sh", self.name]
        command += [
            "systemd-nspawn",
            "--register=no",
            "--keep-unit",
            "--quiet",
            f"--machine={self.name}",
            "-D",
            str(self.files),
        ]
        # bpf: for IPAddressDeny= of units. Everything else is what nspawn keeps from a container.
        command += [
            "--console=pipe",
            "--capability=all",
            "--system-call-filter=bpf",
            "--resolv-conf=off",
            "--timezone=off",
        ]
        command += [f"--bind-ro={outside}:{inside}" for outside, inside in self._binds.items()]
        if self._bridge is None:
            command.append("--private-network")
        else:
            self._plug_in()
            command.append(f"--network-namespace-path=/run/netns/{self.name}")
        with self._console.open("ab") as console:
            self._server = subprocess.Popen(
                [*command, "--boot"], stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        wait_until(self._is_up, what=f"{self.name} has booted", seconds=240)

    def _plug_in(self) -> None:
        """A network of the machine's own, with a cable to the bridge; it outlives reboots, like the wall socket."""
        assert self._bridge is not None
        if self._is_plugged_in:
            return
        self._is_plugged_in = True
        end = f"w-{self.name}"[:15]
        for command in (
            ("netns", "add", self.name),
            ("link", "add", end, "type", "veth", "peer", "name", _INTERFACE, "netns", self.name),
            ("link", "set", end, "master", self._bridge, "up"),
        ):
            subprocess.run(["ip", *command], check=True, timeout=30)

    def _unplug(self) -> None:
        if self._is_plugged_in:
            self._is_plugged_in = False
            subprocess.run(["ip", "netns", "delete", self.name], check=False, timeout=30)

    def _is_up(self) -> bool:
        assert self._server is not None
        if self._server.poll() is not None:
            raise ServerFailed(f"{self.name} did not boot: {self._last_words()}")
        leaders = [leader for supervisor in _children(self._server.pid) for leader in _children(supervisor)]
        if not leaders:
            return False
        self._leader = leaders[0]
        asked = ["sh", "-c", _STATE, "sh", self.name, _INTERFACE, self.address if self._bridge is not None else ""]
        try:
            told = self._inside(asked, timeout=30).stdout.strip()
        except subprocess.TimeoutExpired:
            return False
        # degraded: a container has no kernel modules to load.
        return told in {"running", "degraded"}

    def _inside(
        self,
        command: list[str],
        *,
        stdin: str = "",
        timeout: float,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._enter(command, environment),
            input=stdin, capture_output=True, text=True, errors="replace", check=False, timeout=timeout,
        )  # fmt: skip

    def _enter(self, command: list[str], environment: Mapping[str, str] | None = None) -> list[str]:
        values = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(environment or {})}
        told = [f"{name}={value}" for name, value in values.items()]
        return ["nsenter", "-t", str(self._leader), "-a", "env", "-i", *told, *command]

    def _wait_for_end(self, seconds: float) -> None:
        assert self._server is not None
        try:
            self._server.wait(seconds)
        except subprocess.TimeoutExpired:
            for child in _children(self._server.pid):
                os.kill(child, signal.SIGKILL)
            self._server.kill()
            self._server.wait(30)

    def _last_words(self) -> str:
        return self._console.read_text("utf-8", "replace")[-3000:] if self._console.exists() else ""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except OSError:
        return []
