"""The container image, built by buildah from deploy/docker/Dockerfile as an operator builds it, without a registry.

What the Dockerfile's FROM line names is made of Debian packages, once, and kept where the host tests keep their roots. The
wheels are the host tests' too, so the build needs no network. `python -m tests.support.product_image` makes the bases.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.debian_roots import (
    RELEASES,
    Release,
    RootMissing,
    _alone,
    _fresh,
    _mirror,
    _run,
    cache_folder,
    wheels_for,
)

TAG = "secure-llm-proxy:test"
_INCLUDED = "python3,python3-venv,ca-certificates"
_BUILD_PATIENCE_S = 600.0


class ImageFailed(Exception):
    """The image could not be made; holds the builder's last words. Never a reason to skip."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system to start containers in, and what the image says about starting them."""

    root: Path
    environment: dict[str, str]
    entrypoint: list[str]
    command: list[str]
    user: str
    health: list[str]
    working_directory: str
    build_log: str = ""


def base_name(release: Release) -> str:
    """The name of the image that FROM asks for, of this Debian."""
    return f"python:{release.python}-slim-{release.suite}"


@contextmanager
def product_image(release: Release, source: Path, folder: Path) -> Iterator[Image]:
    """Build the tree `source` over the release's Debian and mount the result until the block ends. Raises ImageFailed."""
    folder.mkdir(parents=True)
    base = _base_of(release)
    # A store of its own: builds leave nothing behind, and two at once don't meet.
    builder = _Builder(folder)
    pip = folder / "pip.conf"
    pip.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    try:
        builder.run("pull", "--quiet", f"oci-archive:{base}:{base_name(release)}", patience_s=300)
        log = builder.run(
            "build", "--isolation", "chroot", "--pull=never", "--format", "docker",
            "--build-arg", f"PYTHON_IMAGE={base_name(release)}",
            "--build-context", f"wheels={wheels_for(release)}", "--secret", f"id=pip,src={pip}",
            "--file", str(source / "deploy" / "docker" / "Dockerfile"), "--tag", TAG, str(source),
            patience_s=_BUILD_PATIENCE_S,
        )  # fmt: skip
        container = builder.run("from", "--pull=never", TAG).strip()
        root = Path(builder.run("mount", container).strip())
        told = json.loads(builder.run("inspect", "--type", "image", TAG))["Docker"]["config"]
        yield Image(
            root=root,
            environment=dict(entry.split("=", 1) for entry in told["Env"]),
            entrypoint=told["Entrypoint"] or [],
            command=told["Cmd"] or [],
            user=told["User"],
            health=told["Healthcheck"]["Test"][1:],
            working_directory=told["WorkingDir"],
            build_log=log,
        )
    finally:
        builder.run("umount", "--all", check=False)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Builder:
    folder: Path

    def run(self, *arguments: str, check: bool = True, patience_s: float = 120.0) -> str:
        command = ["buildah", "--root", str(self.folder / "store"), "--runroot", str(self.folder / "run"), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=patience_s, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            message = (
                "buildah is not installed, and the image can't be built without it (Debian: apt-get install buildah)."
            )
            raise ImageFailed(message) from None
        if check and done.returncode != 0:
            message = f"buildah {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
            raise ImageFailed(message)
        return done.stdout


def _base_of(release: Release) -> Path:
    """An archive with the image that FROM names; made once."""
    digest = hashlib.sha256(f"{_INCLUDED}\n{base_name(release)}".encode()).hexdigest()[:12]
    archive = cache_folder() / f"container-{release.suite}-{digest}.tar"
    with _alone(archive):
        if not archive.exists():
            unfinished = _fresh(archive)
            _run(
                "mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDED}",
                '--aptopt=APT::Install-Recommends "false"', release.suite, str(unfinished / "root"), _mirror(),
                what=f"a base image of Debian {release.version}",
            )  # fmt: skip
            builder = _Builder(unfinished)
            container = builder.run("from", "scratch").strip()
            builder.run("add", container, str(unfinished / "root"), "/", patience_s=300)
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            builder.run("config", "--env", path, container)
            builder.run(
                "commit", "--quiet", container, f"oci-archive:{unfinished}/image:{base_name(release)}", patience_s=300
            )
            (unfinished / "image").rename(archive)
            shutil.rmtree(unfinished)
    return archive


def main() -> None:
    try:
        for release in RELEASES:
            _base_of(release)
    except (ImageFailed, RootMissing) as missing:
        print(missing, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
