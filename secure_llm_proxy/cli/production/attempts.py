"""Looks that may be refused: nothing is believed of what could not be seen."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from secure_llm_proxy.cli.host.check import Check, unknown

AS_ROOT = "run this as root: secure-llm-proxy doctor --production"
_PATIENCE_S = 30
# Runs as another user: which of these can be opened (a file) or listed (a folder)? `true`, not `:`, whose failed redirection
# would end the shell.
_OPEN_ALL = """
for path; do
    if [ -d "$path" ]; then ls -- "$path"; else true <"$path"; fi >/dev/null 2>&1 && printf '%s\\n' "$path"
done
exit 0
"""


def guarded(what: str, look: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """What `look` finds; a right that it lacks makes it unknown."""
    try:
        yield from list(look())
    except PermissionError as error:
        yield unknown(what, f"{error.filename or 'it'} may not be read by this user", AS_ROOT)
    except OSError as error:
        yield unknown(what, f"{error.filename or 'it'}: {error.strerror or type(error).__name__}", AS_ROOT)


def readable_by(user: str, paths: Iterable[Path], *, groups: Iterable[str] = ()) -> list[str]:
    """Those of `paths` that a process of `user` can open, found by trying. Raises `PermissionError` unless this is root's
    process, `KeyError` when there is no such user or group.
    """
    import grp  # noqa: PLC0415  asked for once
    import pwd  # noqa: PLC0415

    account = pwd.getpwnam(user)
    further = [grp.getgrnam(name).gr_gid for name in groups]
    done = subprocess.run(  # noqa: S603  our own program
        ["/bin/sh", "-c", _OPEN_ALL, "sh", *map(str, paths)],
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=further,
        cwd="/",
        env={"LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=_PATIENCE_S,
        check=True,
    )
    return done.stdout.decode("utf-8", "surrogateescape").splitlines()
