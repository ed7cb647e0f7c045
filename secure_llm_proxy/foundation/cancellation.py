"""One flag that several parties of an exchange can raise and listen to: the client left, the deadline passed."""

from __future__ import annotations

from collections.abc import Callable


class Cancellation:
    """Raised at most once; the first reason stays. Listeners run in the raiser's greenlet and must not block."""

    __slots__ = ("_listeners", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def raised(self) -> bool:
        return self.reason is not None

    def raise_(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            # Taken off first: a listener may stop listening while it is told.
            listeners, self._listeners = self._listeners, []
            for listener in listeners:
                listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` when raised; at once if that has happened already."""
        if self.reason is not None:
            listener()
        else:
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)
