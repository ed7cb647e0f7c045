"""What scripts/install leaves behind: which secrets it told, and who can read and change what."""

from __future__ import annotations

import re

import pytest

from tests.support.installed_host import InstalledHost


def test_the_secrets_that_must_be_kept_are_shown_once(host: InstalledHost) -> None:
    assert "owner key" in host.said.lower()
    assert len(re.findall(r"AGE-SECRET-KEY-1[0-9A-Z]+", host.said)) == 1

    [identity] = re.findall(r"AGE-SECRET-KEY-1[0-9A-Z]+", host.said)
    found = host.machine.run("grep", "-rlF", identity, "/etc", "/var", "/opt", "/root", "/run", "/home", check=False)
    assert found.stdout == ""


@pytest.mark.parametrize("user", ["secure_llm_proxy", "www-data", "nobody"])
@pytest.mark.parametrize(
    "place",
    [
        "/var/lib/secure-llm-audit/segments",
        "/var/lib/secure-llm-audit/keys",
        "/etc/secure_llm_proxy/credentials",
        "/etc/secure_llm_proxy/audit-credentials",
    ],
)
def test_neither_the_web_service_nor_strangers_can_open_log_keys_or_secrets(
    host: InstalledHost, user: str, place: str
) -> None:
    host.machine.run("test", "-d", place)

    opened = host.machine.run("runuser", "-u", user, "--", "ls", place, check=False)

    assert opened.returncode != 0
    assert "Permission denied" in opened.stderr


def test_the_code_is_roots_and_the_service_cannot_write_to_it(host: InstalledHost) -> None:
    others = host.machine.told(
        "find", "/opt/secure_llm_proxy/", "/opt/secure_llm_proxy.releases/", "!", "-user", "root"
    )
    writable = host.machine.told("find", "/opt/secure_llm_proxy.releases/", "-perm", "/022", "!", "-type", "l")

    assert others == ""
    assert writable == ""
