"""Who may read and write what: settings, code, and the audit log."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from secure_llm_proxy.cli.host.check import Check, failed, ok, unknown
from secure_llm_proxy.cli.host.places import AUDIT_USER, WEB_USER, Places
from secure_llm_proxy.cli.production.attempts import AS_ROOT, readable_by

_SHOWN = 3
# Path below the settings' folder: the group that may read it, and the mode at most. Folders of secrets: theirs for all in them.
_RULES = {
    "env": (WEB_USER, 0o640),
    "audit.env": (AUDIT_USER, 0o640),
    "credentials": ("root", 0o700),
    "audit-credentials": ("root", 0o700),
}
_PRIVATE_FILE = 0o600
_OTHER_FILE, _OTHER_FOLDER = 0o644, 0o755


def settings_file_checks(places: Places, *, owner: int = 0) -> Iterator[Check]:
    """Everything in the settings' folder is root's; secrets are root's alone, an env file its service's to read."""
    what = f"files in {places.settings}"
    if not places.settings.is_dir():
        yield failed(what, "there is no such folder", "this host is not installed: run scripts/install")
        return
    everything = list(_everything(places.settings))
    wrong = [check for path in everything for check in _troubles(path, places.settings, owner)]
    yield from wrong or [ok(what, f"{len(everything)}, owners and modes as they must be")]


def _everything(folder: Path) -> Iterator[Path]:
    """The folder and all in it, links as links. Raises `PermissionError` for a folder that may not be listed."""
    yield folder
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _everything(entry)
        else:
            yield entry


def _troubles(path: Path, root: Path, owner: int) -> Iterator[Check]:
    what, told = f"file {path}", path.lstat()
    if told.st_uid != owner:
        yield failed(what, f"belongs to {_user(told.st_uid)}", f"chown -h {_user(owner)} {path}")
    if stat.S_ISLNK(told.st_mode):
        return
    place = str(path.relative_to(root))
    group, most = _rule(place, is_folder=stat.S_ISDIR(told.st_mode), is_key=_holds_private_key(path, told))
    mode = stat.S_IMODE(told.st_mode)
    if mode & ~most:
        yield failed(what, f"mode {mode:04o}, where {most:04o} is the most", f"chmod {mode & most:04o} {path}")
    elif (
        mode & stat.S_IRWXG and group is not None and told.st_gid != root.stat().st_gid and _group(told.st_gid) != group
    ):
        yield failed(what, f"the group {_group(told.st_gid)} may read it", f"chgrp {group} {path}")


def _rule(place: str, *, is_folder: bool, is_key: bool) -> tuple[str | None, int]:
    top, _, rest = place.partition("/")
    if top in _RULES:
        group, most = _RULES[top]
        return group, most & _PRIVATE_FILE if rest and not is_folder else most
    if is_key:
        return "root", _PRIVATE_FILE
    return None, _OTHER_FOLDER if is_folder else _OTHER_FILE


def _holds_private_key(path: Path, told: os.stat_result) -> bool:
    if not stat.S_ISREG(told.st_mode) or told.st_size > 1 << 16:
        return False
    return b"PRIVATE KEY-----" in path.read_bytes()


def code_checks(places: Places, *, owner: int = 0) -> Iterator[Check]:
    """The service cannot change what it runs: every file of the release in force, and every folder above, is root's."""
    what = f"code in {places.code}"
    release = places.code.resolve()
    if not (release / "app.py").is_file():
        yield failed(what, "there is no release", "run scripts/install")
        return
    wrong = [str(path) for path in [*release.parents, *_folder_of_links(places.code)] if not _is_only_for(owner, path)]
    count = 0
    for folder, _, files in os.walk(release, onerror=_raise):
        for path in (folder, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118  thousands of them
            count += 1
            if not _is_only_for(owner, path):
                wrong.append(path)
    if wrong:
        shown = ", ".join(wrong[:_SHOWN]) + (f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        yield failed(
            what,
            f"not root's own or writable for others: {shown}",
            f"chown -R root:root {release}; chmod -R go-w {release}",
        )
    else:
        yield ok(what, f"{count} files and folders, root's own")


def _folder_of_links(path: Path) -> list[Path]:
    return [path, *path.absolute().parents]


def _is_only_for(owner: int, path: str | Path) -> bool:
    """Nobody but root, and `owner`, can change it, or put another in its place. A sticky folder like /tmp is no place for code."""
    told = os.lstat(path)
    return told.st_uid in {0, owner} and (
        stat.S_ISLNK(told.st_mode) or not told.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def _raise(error: OSError) -> None:
    raise error


def audit_file_checks(places: Places, *, web_user: str = WEB_USER, audit_group: str = AUDIT_USER) -> Iterator[Check]:
    """By trying, as the web user, with the group through which it reaches the writer's sockets."""
    what = "audit log and keys, for the web user"
    private = [
        places.audit_state / "segments",
        places.audit_state / "keys",
        *places.audit_state.glob("segments/*"),
        *places.audit_state.glob("keys/*"),
        places.settings / "audit-credentials",
        places.settings / "audit-credentials" / "audit_kek",
        places.settings / "audit.env",
        places.backups,
    ]
    if os.geteuid() != 0:
        yield unknown(what, "only root can try as another user", AS_ROOT)
        return
    try:
        open_to_it = readable_by(web_user, private, groups=(audit_group,))
    except KeyError as error:
        yield failed(what, f"there is no user or group {error.args[0]}", "run scripts/install again")
        return
    # The group may read its settings: they say where the log is, and hold no secret.
    open_to_it = [path for path in open_to_it if path != str(places.settings / "audit.env")]
    if open_to_it:
        fix = f"chmod -R go= {places.audit_state}/segments {places.audit_state}/keys; see the files named"
        yield failed(what, f"{web_user} can open {', '.join(open_to_it[:_SHOWN])}", fix)
    else:
        yield ok(what, f"{web_user} tried to open {len(private)} of them and could not")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
