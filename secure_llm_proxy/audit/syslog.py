"""Syslog as checkpoints and records leave by it: RFC 5424 messages to /dev/log, by UDP (RFC 5426) or TCP (RFC 6587).

Syslog has no acknowledgements. What "sent" means: over the unix socket, the receiver's queue holds it; over TCP, the
peer's kernel has acknowledged it (asked of ours with SIOCOUTQ); over UDP, it left us, and nobody knows more.
"""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import os
import re
import socket
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from secure_llm_proxy.foundation.errors import OperatorError

PATIENCE_S = 2.0
_LOG_AUDIT = 13
_INFO = 6
_APP_NAME = "secure-llm-audit"
_HOST = re.compile(r"[\x21-\x7e]{1,255}")
_POLL_S = 0.0005
_POLL_S_MAX = 0.02


class Transport(StrEnum):
    UNIX = "unix"
    TCP = "tcp"
    UDP = "udp"


class SyslogAway(Exception):
    """The receiver did not take it. The text says why, for the operator."""


@dataclass(frozen=True, slots=True)
class SyslogAddress:
    """`/dev/log`, `tcp://host:port` or `udp://host:port`; `host` is a path for the unix socket, `port` 0."""

    transport: Transport
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, setting: str) -> SyslogAddress:
        """Raises `OperatorError` that names `setting`."""
        if text.startswith("/"):
            return cls(Transport.UNIX, text, 0)
        found = re.fullmatch(r"(tcp|udp)://(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):([1-9][0-9]{0,4})", text)
        if found is None or int(found[3]) > 65_535:  # noqa: PLR2004
            raise OperatorError(f"{setting}: syslog goes to /dev/log, tcp://host:port or udp://host:port.")
        return cls(Transport(found[1]), found[2].strip("[]"), int(found[3]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.host if self.transport is Transport.UNIX else f"{self.transport}://{host}:{self.port}"

    @property
    def leaves_host(self) -> bool:
        """Whether what is sent there stands on another machine. What /dev/log passes on, nobody here knows."""
        return self.transport is not Transport.UNIX and not is_this_host(self.host)


def is_this_host(host: str) -> bool:
    """Whether a host's name or address is plainly this machine's own."""
    if host.rstrip(".").lower() in {"", "localhost", "localhost.localdomain", socket.gethostname().lower()}:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@dataclass(frozen=True, slots=True)
class Message:
    """`kind` becomes the MSGID; `brief` is sent where `text` is too long for a datagram."""

    t: str
    kind: str
    text: bytes
    brief: bytes = b""


class SyslogLink:
    """One connection, made at the first send and again after a failure. Used by one thread."""

    def __init__(self, address: SyslogAddress, host_name: str, *, patience_s: float = PATIENCE_S) -> None:
        self._address = address
        self._host_name = host_name if _HOST.fullmatch(host_name) else "-"
        self._patience_s = patience_s
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[Message]) -> None:
        """Return when all are sent, or raise `SyslogAway`; some may have been sent then, and will be twice."""
        try:
            link = self._connected()
            if self._address.transport is Transport.TCP:
                self._send_stream(link, messages)
            else:
                for message in messages:
                    self._send_datagram(link, message)
        except OSError as error:
            self.close()
            raise SyslogAway(f"{self._address}: {error.strerror or error}") from None
        except SyslogAway:
            self.close()
            raise

    def close(self) -> None:
        link, self._socket = self._socket, None
        if link is not None:
            link.close()

    def _connected(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        if self._address.transport is Transport.TCP:
            link = socket.create_connection((self._address.host, self._address.port), timeout=self._patience_s)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        else:
            link = self._connected_datagram()
        link.settimeout(self._patience_s)
        self._socket = link
        return link

    def _connected_datagram(self) -> socket.socket:
        if self._address.transport is Transport.UNIX:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            address: str | tuple[str, int] = self._address.host
        else:
            found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_DGRAM)[0]
            link = socket.socket(found[0], socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            address = found[4][:2]  # type: ignore[assignment]
        try:
            link.connect(address)
        except OSError:
            link.close()
            raise
        return link

    def _send_datagram(self, link: socket.socket, message: Message) -> None:
        try:
            link.send(self._rfc5424(message, message.text))
        except OSError as error:
            if error.errno != errno.EMSGSIZE or not message.brief:
                raise
            link.send(self._rfc5424(message, message.brief))

    def _send_stream(self, link: socket.socket, messages: Sequence[Message]) -> None:
        self._require_peer(link)
        whole = []
        for message in messages:
            text = self._rfc5424(message, message.text)
            # Octet counting: a line feed in a message can't end it.
            whole.append(b"%d %b" % (len(text), text))
        link.sendall(b"".join(whole))
        deadline, pause_s = time.monotonic() + self._patience_s, _POLL_S
        while _unacknowledged(link):
            if time.monotonic() > deadline:
                raise SyslogAway(f"{self._address}: the receiver does not read")
            time.sleep(pause_s)
            pause_s = min(_POLL_S_MAX, pause_s * 2)
        self._require_peer(link)

    def _require_peer(self, link: socket.socket) -> None:
        """Raise when the connection has an error, or the peer closed its end: it has gone, whatever our kernel would take."""
        if failed := link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failed, os.strerror(failed))
        link.setblocking(False)
        try:
            # A receiver has nothing to say to us.
            while link.recv(4096):
                pass
        except BlockingIOError:
            link.settimeout(self._patience_s)
        else:
            raise SyslogAway(f"{self._address}: the receiver closed the connection")

    def _rfc5424(self, message: Message, text: bytes) -> bytes:
        kind = message.kind[:32] or "-"
        head = f"<{_LOG_AUDIT * 8 + _INFO}>1 {message.t} {self._host_name} {_APP_NAME} {os.getpid()} {kind} - "
        return head.encode() + text


def _unacknowledged(link: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    size = array.array("i", [0])
    fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, size)
    return size[0]
