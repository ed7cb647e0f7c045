"""`secure-llm-certificates.service`: nginx serves the certificate that lies in its file, and somebody hears in time of its end.

Whoever renews a certificate need not know of nginx: once the file holds another one than nginx shows, nginx is reloaded.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

from secure_llm_proxy.cli.host import systemd
from secure_llm_proxy.cli.host.places import places_of
from secure_llm_proxy.cli.host.served import CertificateUnread, certificate_in, days_left, handshake
from secure_llm_proxy.cli.host.site import Site, find_site

_RELOADED_WITHIN_S = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="certificates", allow_abbrev=False)
    parser.add_argument("--days", type=float, default=21.0, help="fewer days left fail (default 21)")
    parser.add_argument(
        "--reload", default="systemctl reload nginx.service", help="what makes nginx read its files again"
    )
    options = parser.parse_args(arguments)
    site = find_site(places_of().machine)
    if site is None or site.tls is None or site.certificate is None:
        return _fail("nginx has no site of ours with TLS", "run scripts/install")
    try:
        lies = certificate_in(site.certificate)
        days = days_left(lies)
    except (OSError, CertificateUnread) as error:
        return _fail(f"{site.certificate}: {error}", "put the certificate there (PEM), then run this again")
    status = _brought_into_use(site, lies, shlex.split(options.reload))
    if days < options.days:
        return _fail(f"{site.certificate} ends in {days:.0f} days", "renew it: certbot renew, or a new file") or status
    print(f"{site.certificate}: {days:.0f} days left")
    return status


def _brought_into_use(site: Site, lies: bytes, reload: Sequence[str]) -> int:
    assert site.tls is not None
    try:
        served = handshake(*site.tls, site.name).certificate
    except OSError as error:
        return _fail(
            f"nginx does not answer at {site.tls[0]}:{site.tls[1]} ({error})", "nginx -t; systemctl status nginx"
        )
    if served == lies:
        return 0
    if days_left(lies) < 0:
        return _fail(
            f"{site.certificate} has ended; nginx keeps the one it has", "renew it: certbot renew, or a new file"
        )
    status, said = systemd.run(reload, timeout_s=60)
    if status:
        return _fail(f"nginx could not be reloaded: {said.strip().rpartition(chr(10))[2] or status}", "nginx -t")
    deadline = time.monotonic() + _RELOADED_WITHIN_S
    while time.monotonic() < deadline:
        try:
            if handshake(*site.tls, site.name).certificate == lies:
                print(f"nginx was reloaded and serves what lies in {site.certificate}")
                return 0
        except OSError:
            pass
        time.sleep(0.2)
    return _fail(f"nginx was reloaded and does not serve {site.certificate}", "nginx -t; see its error log")


def _fail(what: str, fix: str) -> int:
    print(f"{what}. {fix[:1].upper()}{fix[1:]}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
