"""`nginx -t` over the rendered site, for scripts/check: `python -m tests.support.check_nginx_site FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.certificates import make_certificate
from tests.support.nginx import Flood, check_configuration, write_configuration
from tests.support.ports import free_port


def main() -> None:
    folder = Path(sys.argv[1])
    certificate = make_certificate(folder)
    main_file = write_configuration(
        folder, certificate, socket=folder / "web.sock", port=free_port(), plain_port=free_port(), flood=Flood()
    )
    print(check_configuration(main_file))


if __name__ == "__main__":
    main()
