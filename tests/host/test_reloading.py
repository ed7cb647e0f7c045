"""`systemctl reload` of the installed service: new settings for new workers, nothing lost of what runs."""

from __future__ import annotations

from tests.support.installed_host import WEB, InstalledHost
from tests.support.programs import wait_until
from tests.support.steady_load import SteadyLoad

_RELOADS = 5
# Together within what nginx and the product allow one client.
_PAUSE_S = 0.05


def test_reloads_under_load_fail_no_request_and_cut_no_stream(host: InstalledHost) -> None:
    key, served_by = host.key, _workers(host)

    with SteadyLoad(host, key, plain=2, streams=2, pause_s=_PAUSE_S) as load:
        for _ in range(_RELOADS):
            before = _workers(host)
            host.machine.run("systemctl", "reload", WEB)
            wait_until(lambda before=before: not _workers(host) & before, what="the old workers have left", seconds=240)  # type: ignore[misc]  # mypy#12557
            load.wait_for_more(2)

    assert load.outcome.failed == []
    assert load.outcome.stopped == 0
    assert not _workers(host) & served_by


def test_a_reload_with_wrong_settings_is_refused_and_changes_nothing(host: InstalledHost) -> None:
    before = _workers(host)
    host.set_environment(LOG_LEVLE="DEBUG")
    try:
        done = host.machine.run("systemctl", "reload", WEB, check=False)
        told = host.machine.journal(WEB)
    finally:
        host.machine.run("sed", "-i", "/^LOG_LEVLE=/d", "/etc/secure_llm_proxy/env")
        # The list of places is made anew whenever the settings change; with the wrong ones it failed, which the health check
        # would tell of for minutes where the watcher has missed the change back.
        host.machine.wait_for(
            "systemctl", "start", "secure-llm-egress-places.service", what="the list of places is made"
        )

    assert done.returncode != 0
    assert "did you mean LOG_LEVEL?" in told
    assert _workers(host) == before
    assert host.chat().status == 200


def _workers(host: InstalledHost) -> set[str]:
    master = host.machine.main_pid(WEB)
    return set(host.machine.told("cat", f"/proc/{master}/task/{master}/children").split())
