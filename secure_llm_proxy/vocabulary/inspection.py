"""How a running answer is looked at before it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from secure_llm_proxy.vocabulary.chat import StreamEvent


class StreamInspector(Protocol):
    """Sees one stream's events in their order. It may hold events back, change them, and give them later.

    Runs in the event loop, so it must not wait. What it raises (a `ProxyError`) ends the stream.
    """

    def feed(self, event: StreamEvent) -> Sequence[StreamEvent]:
        """Take the next event and return those that may leave now, in order."""
        ...

    def finish(self) -> Sequence[StreamEvent]:
        """The provider has ended its answer: return what was held back and may leave."""
        ...


class PassThrough:
    """The inspector where nothing is to be inspected: every event leaves as it came. The relay knows it by its type and does
    not ask it.
    """

    __slots__ = ()

    def feed(self, event: StreamEvent) -> Sequence[StreamEvent]:
        return (event,)

    def finish(self) -> Sequence[StreamEvent]:
        return ()
