"""One flag that several parties raise and listen to."""

from __future__ import annotations

from secure_llm_proxy.foundation.cancellation import Cancellation


def test_the_first_reason_stays_and_listeners_hear_once() -> None:
    heard: list[str] = []
    cancellation = Cancellation()
    cancellation.listen(lambda: heard.append("early"))

    cancellation.raise_("client_gone")
    cancellation.raise_("deadline")

    assert cancellation.raised
    assert cancellation.reason == "client_gone"
    assert heard == ["early"]


def test_who_listens_late_hears_at_once() -> None:
    heard: list[str] = []
    cancellation = Cancellation()
    cancellation.raise_("client_gone")

    cancellation.listen(lambda: heard.append("late"))

    assert heard == ["late"]


def test_who_no_longer_listens_hears_nothing() -> None:
    heard: list[str] = []
    cancellation = Cancellation()

    def listener() -> None:
        heard.append("x")

    cancellation.listen(listener)
    cancellation.unlisten(listener)
    cancellation.unlisten(listener)
    cancellation.raise_("client_gone")

    assert heard == []


def test_a_listener_may_stop_listening_while_it_is_told() -> None:
    heard: list[str] = []
    cancellation = Cancellation()

    def first() -> None:
        heard.append("first")
        cancellation.unlisten(first)

    cancellation.listen(first)
    cancellation.listen(lambda: heard.append("second"))
    cancellation.raise_("client_gone")

    assert heard == ["first", "second"]
