"""Among how many workers each limit is divided while they can't ask Redis."""

from __future__ import annotations


class Shares:
    """`hosts` x `workers`. `hosts` is the last number counted in Redis, 1 until then."""

    __slots__ = ("_hosts", "_workers")

    def __init__(self, *, workers: int, hosts: int = 1) -> None:
        self._workers = max(1, workers)
        self._hosts = max(1, hosts)

    @property
    def hosts(self) -> int:
        return self._hosts

    @hosts.setter
    def hosts(self, count: int) -> None:
        self._hosts = max(1, count)

    @property
    def count(self) -> int:
        return self._hosts * self._workers
