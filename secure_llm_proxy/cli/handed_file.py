"""Files that a command is given to read. On an installed host it runs as a service's user, who may not open what is root's."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import IO, Any, NoReturn

import click


class HandedPath(click.Path):
    """A file to read; - is standard input. Says so where the file is there and this user may not open it."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, allow_dash=True, path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if os.fspath(value) != "-":
            _require_open(self, value, param, ctx)
        return super().convert(value, param, ctx)


class HandedFile(click.File):
    """As above, opened."""

    def convert(
        self, value: str | os.PathLike[str] | IO[Any], param: click.Parameter | None, ctx: click.Context | None
    ) -> IO[Any]:
        if isinstance(value, str | os.PathLike) and os.fspath(value) != "-":
            _require_open(self, value, param, ctx)
        return super().convert(value, param, ctx)


def _require_open(
    kind: click.ParamType[Any], path: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        _refuse(kind, path, param, ctx)
    except OSError:
        # click's own words fit.
        return


def _refuse(
    kind: click.ParamType[Any], path: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
) -> NoReturn:
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    kind.fail(
        f"{os.fspath(path)} may not be opened by the user {user}, as whom this runs. Say - instead, and hand it over on "
        f"standard input: < {os.fspath(path)}",
        param,
        ctx,
    )
