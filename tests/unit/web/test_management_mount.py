"""What goes to the management application, and when that is made."""

from __future__ import annotations

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

import gevent
import pytest

from secure_llm_proxy.web.admin.mount import ManagementMount


class Application:
    """Answers with its name."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return [self._name]


def mount(made: list[Application]) -> ManagementMount:
    def make() -> Application:
        # Somebody else gets a turn while it is made.
        gevent.sleep(0)
        made.append(Application(b"management"))
        return made[-1]

    return ManagementMount(Application(b"data plane"), make)


def ask(mounted: ManagementMount, path: str) -> bytes:
    return b"".join(mounted({"PATH_INFO": path}, lambda *_: lambda _: None))


@pytest.mark.parametrize(
    "path", ["/auth", "/auth/", "/auth/login", "/api/v1", "/api/v1/users", "/api/v1//x", "/auth/../chat"]
)
def test_what_is_below_auth_and_the_api_goes_to_management(path: str) -> None:
    assert ask(mount([]), path) == b"management"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/chat",
        "/api/health",
        "/api/v10",
        "/api/v1x/users",
        "/authx",
        "/AUTH/login",
        "//auth/login",
        "/v1/auth",
    ],
)
def test_everything_else_stays_at_the_data_plane_which_never_makes_it(path: str) -> None:
    made: list[Application] = []

    assert ask(mount(made), path) == b"data plane"
    assert made == []


def test_it_is_made_once_whoever_asks_at_the_same_time() -> None:
    made: list[Application] = []
    mounted = mount(made)

    askers = [gevent.spawn(ask, mounted, "/auth/me") for _ in range(10)]
    gevent.joinall(askers, timeout=30, raise_error=True)

    assert [asker.value for asker in askers] == [b"management"] * 10
    assert len(made) == 1
