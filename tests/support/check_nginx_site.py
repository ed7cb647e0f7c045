"""`nginx -t` and gixy over the rendered site, for scripts/check: `python -m tests.support.check_nginx_site FOLDER`.

The site is rendered for the installed nginx and for the newest one, so that both forms are looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.certificates import make_certificate
from tests.support.nginx import check_configuration, installed_nginx, newest_nginx, nginx_version, write_configuration
from tests.support.ports import free_port
from tests.support.programs import ServerFailed


def main() -> None:
    folder = Path(sys.argv[1])
    certificate = make_certificate(folder)
    for program in (installed_nginx(), newest_nginx()):
        version = ".".join(map(str, nginx_version(program)))
        main_file = write_configuration(
            folder / version,
            certificate,
            socket=folder / "web.sock",
            port=free_port(),
            plain_port=free_port(),
            program=program,
        )
        print(check_configuration(main_file, program))
        check_by_gixy(main_file)


def check_by_gixy(main_file: Path) -> None:
    """Raises ServerFailed with what gixy finds. Its exit code alone would not tell a finding from a file it cannot read."""
    gixy = str(Path(sys.executable).with_name("gixy"))
    done = subprocess.run(
        [gixy, "-f", "json", str(main_file)], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode != 0 or json.loads(done.stdout) != []:
        raise ServerFailed(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
