"""Who ends an idle connection between nginx and a worker: always nginx, which repeats no POST that met a closing one."""

from __future__ import annotations

import re
from pathlib import Path

from secure_llm_proxy.server import worker
from secure_llm_proxy.settings import ServerSettings

SITE = Path(__file__).resolve().parents[3] / "deploy" / "nginx" / "secure_llm_proxy.conf"


def test_nginx_gives_an_idle_connection_up_before_any_worker_does() -> None:
    found = re.search(r"^ *keepalive_timeout (\d+)s;$", SITE.read_text("utf-8"), re.MULTILINE)

    assert found is not None
    assert 2 * int(found[1]) <= worker._SILENT_S
    assert ServerSettings().keepalive_s > worker._SILENT_S
