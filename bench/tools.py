"""The programs that make load and answer it: compiled, found, or stood in for by pure Python under --quick."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"
_COMPILE_PATIENCE_S = 120


class ToolMissing(Exception):
    """Says what is missing and which package brings it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """None where only the pure Python stand-in is there."""

    wrk: str | None
    upstream: Path | None
    stream_load: Path | None


def default_cache() -> Path:
    """Outside the tree: compiled tools and installed peers, kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secure-llm-proxy-bench"


def find_tools(cache: Path, *, stand_ins_allowed: bool) -> Tools:
    """Raises `ToolMissing` when one is not there and only stand-ins could be used."""
    wrk = shutil.which("wrk")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not stand_ins_allowed:
        missing = [package for package, found in (("wrk", wrk), ("gcc libc6-dev", compiler)) if found is None]
        if missing:
            raise ToolMissing(
                f"Not installed: {' '.join(missing)} (Debian and Ubuntu: apt-get install {' '.join(missing)})."
            )
    if compiler is None:
        return Tools(wrk, None, None)
    return Tools(wrk, _compiled(compiler, "upstream", cache), _compiled(compiler, "stream_load", cache))


def _compiled(compiler: str, name: str, cache: Path) -> Path:
    """The program of native/NAME.c, compiled anew when its source is newer. Raises `ToolMissing` when it does not compile."""
    source, program = NATIVE / f"{name}.c", cache / "tools" / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f"{name}.{os.getpid()}")
    done = subprocess.run(  # noqa: S603  our own argument list
        [compiler, "-O2", "-Wall", "-o", str(unfinished), str(source)],
        capture_output=True, text=True, check=False, timeout=_COMPILE_PATIENCE_S,
    )  # fmt: skip
    if done.returncode != 0:
        raise ToolMissing(f"{source.name} does not compile: {done.stderr[-2000:]}")
    unfinished.rename(program)
    return program
