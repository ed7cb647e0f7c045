"""scripts/lib/release.sh and changes.sh: what of a source comes onto a host, under which name, and how files are put there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_SOURCED = f"""
set -eu
script_name=try
. {_ROOT}/scripts/lib/host.sh
. {_ROOT}/scripts/lib/changes.sh
. {_ROOT}/scripts/lib/release.sh
make_workshop
"""
_PARTS = (
    "manage.py", "gunicorn.conf.py", "requirements.txt", "README.md", "CHANGELOG.md", ".env.example", "config/a", "deploy/a",
    "docs/a", "migrations/a", "scripts/install", "secure_llm_proxy/web/views.py",
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree of the product's shape, with what a first run and tests leave in it."""
    folder = tmp_path / "source"
    for name in (
        *_PARTS,
        "tests/a",
        "bench/a",
        "config/models.yaml",
        "secure_llm_proxy/__pycache__/x.pyc",
        "instance/app.db",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "app.py").write_text("one\n")
    (folder / "secure_llm_proxy" / "__init__.py").write_text('__version__ = "7.8.9"\n')
    return folder


def run(text: str, *arguments: object, **environment: str) -> str:
    done = subprocess.run(
        ["sh", "-c", _SOURCED + text, "sh", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_clone(folder: Path) -> str:
    (folder / ".gitignore").write_text("__pycache__/\n/config/models.yaml\n/instance/\n")
    as_somebody = ["-c", "user.name=t", "-c", "user.email=t@example.test"]
    for command in (["init", "-q"], ["add", "-A"], [*as_somebody, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, timeout=60)
    told = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, timeout=60)
    return told.stdout.decode().strip()


def test_a_release_holds_what_runs_and_nothing_that_a_run_or_a_test_left(source: Path) -> None:
    from_archive = run('release_files "$1"', source).split()
    as_clone(source)
    (source / "secure_llm_proxy" / "notes.txt").write_text("untracked")
    from_clone = run('release_files "$1"', source).split()

    assert set(from_archive) == {*_PARTS, "app.py", "secure_llm_proxy/__init__.py"}
    assert from_clone == from_archive


def test_a_release_is_named_by_its_commit_and_else_by_its_content(source: Path) -> None:
    of_archive = run('release_name "$1"', source)
    copied = Path(shutil.copytree(source, source.with_name("copied")))
    os.utime(copied / "app.py", (0, 0))
    commit = as_clone(source)
    of_clone = run('release_name "$1"', source)
    (source / "app.py").write_text("two\n")
    of_changed = run('release_name "$1"', source)

    assert of_archive.startswith("7.8.9-tree.")
    assert run('release_name "$1"', copied) == of_archive
    assert of_clone == f"7.8.9-{commit[:12]}\n"
    assert of_changed.startswith("7.8.9-tree.")
    assert of_changed != of_archive


def test_a_release_unpacked_inside_somebodys_clone_is_taken_by_its_files(source: Path) -> None:
    alone = run('release_name "$1"; release_files "$1"', source)
    (source.parent / "notes").write_text("x")
    (source.parent / ".gitignore").write_text("/source/\n")
    subprocess.run(["git", "-C", str(source.parent), "init", "-q"], check=True, timeout=60)
    as_somebody = ["-c", "user.name=t", "-c", "user.email=t@example.test"]
    for command in (["add", "notes"], [*as_somebody, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(source.parent), *command], check=True, timeout=60)

    assert run('release_name "$1"; release_files "$1"', source) == alone


def test_units_of_our_names_are_ours_when_a_release_on_this_host_brought_them(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    (releases / "one" / "deploy" / "systemd").mkdir(parents=True)
    (releases / "one" / "deploy" / "systemd" / "secure-llm-old.timer").write_text("[Timer]\n")
    ask = 'if is_shipped_unit "$1"; then echo ours; else echo theirs; fi'
    places = {"SLP_RELEASES": str(releases), "SLP_CODE": str(tmp_path / "none")}

    assert run(ask, "secure-llm-old.timer", **places) == "ours\n"
    assert run(ask, "secure-llm-report.timer", **places) == "theirs\n"


def test_a_file_is_put_whole_with_its_mode_and_only_when_it_differs(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    owner, group = subprocess.run(
        ["stat", "-c", "%U %G", str(tmp_path)], check=True, capture_output=True, text=True, timeout=30
    ).stdout.split()
    put = 'printf "%s" "$2" >"$workshop/in"; put_file "$1" 0640 "$3" "$4" <"$workshop/in"; echo "$changes"'

    told = run(put, file, "secret", owner, group, dry_run="yes")
    was_there = file.exists()
    first = run(put, file, "secret", owner, group)
    made = file.stat()
    second = run(put, file, "secret", owner, group)
    file.chmod(0o666)
    third = run(put, file, "secret", owner, group)

    assert (told, was_there) == ("1\n", False)
    assert (first, second, third) == ("1\n", "0\n", "1\n")
    assert file.read_text() == "secret"
    assert file.stat().st_ino == made.st_ino
    assert [file.stat().st_mode & 0o777, made.st_mode & 0o777] == [0o640, 0o640]
    assert [path.name for path in tmp_path.iterdir()] == ["settings"]


def test_a_link_is_changed_in_one_step_and_left_alone_when_it_is_right(tmp_path: Path) -> None:
    link = tmp_path / "in-force"
    put = 'put_link "$1" "$2"; echo "$changes"'

    told = [run(put, link, target) for target in ("/releases/one", "/releases/one", "/releases/two")]

    assert told == ["1\n", "0\n", "1\n"]
    assert link.readlink() == Path("/releases/two")
    assert [path.name for path in tmp_path.iterdir()] == ["in-force"]


def test_a_folder_is_not_handed_over_at_the_end_of_a_link_that_root_did_not_make(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o755)
    link = tmp_path / "keys"
    link.symlink_to(precious)
    if os.getuid() == 0:
        os.chown(link, 65534, 65534, follow_symlinks=False)
    owner, group = subprocess.run(
        ["stat", "-c", "%U %G", str(tmp_path)], check=True, capture_output=True, text=True, timeout=30
    ).stdout.split()

    told = run('(put_directory "$1" 0700 "$2" "$3") 2>&1 || echo "refused"', link, owner, group)

    assert "is a link to" in told
    assert told.endswith("refused\n")
    assert precious.stat().st_mode & 0o777 == 0o755
