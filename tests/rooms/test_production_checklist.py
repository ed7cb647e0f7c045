"""`manage.py doctor --production`, point by point, at real files, sockets and servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from secure_llm_proxy.cli.host.check import Check, Level
from secure_llm_proxy.cli.host.places import places_of
from secure_llm_proxy.cli.production.attempts import guarded, readable_by
from secure_llm_proxy.cli.production.edge import edge_checks
from secure_llm_proxy.cli.production.file_rights import audit_file_checks, code_checks, settings_file_checks
from secure_llm_proxy.cli.production.keeping import anchor_checks, backup_checks
from secure_llm_proxy.cli.production.network import egress_in, firewall_in, listening, port_checks
from secure_llm_proxy.cli.production.settings_in_force import credential_checks, settings_checks
from secure_llm_proxy.cli.production.stores import postgresql_checks, redis_checks, weak_entries
from secure_llm_proxy.settings import RedisSettings, Settings
from secure_llm_proxy.settings.sections import DatabaseSettings, IdentitySettings, LimitSettings, ServerSettings
from tests.support.certificates import make_certificate, make_faulty_certificate
from tests.support.moved_host import ROOT, MovedHost
from tests.support.nginx import PrivateNginx
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.redis_server import PrivateRedis

OTHER_USER = "www-data"
ME = os.geteuid()


@pytest.fixture
def host(tmp_path: Path) -> MovedHost:
    """Settings as scripts/install leaves them."""
    host = MovedHost(tmp_path / "machine")
    host.write("etc/secure_llm_proxy/env", "FLASK_ENV=production\nREDIS_URL=redis://127.0.0.1:6379/0\n", mode=0o640)
    host.write("etc/secure_llm_proxy/audit.env", "FLASK_ENV=production\n", mode=0o640)
    host.write("etc/secure_llm_proxy/models.yaml", "providers: {}\n", mode=0o640)
    for name in ("secret_key", "encryption_key", "database_url"):
        host.write(f"etc/secure_llm_proxy/credentials/{name}", "x", mode=0o600)
    host.write("etc/secure_llm_proxy/audit-credentials/audit_kek", "x", mode=0o600)
    for folder in ("credentials", "audit-credentials"):
        host.path(f"etc/secure_llm_proxy/{folder}").chmod(0o700)
    host.write("opt/secure_llm_proxy.releases/1/app.py")
    host.path("opt/secure_llm_proxy").symlink_to("secure_llm_proxy.releases/1")
    return host


def levels(checks: list[Check]) -> dict[str, Level]:
    return {check.what: check.level for check in checks}


def troubles(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.level is not Level.OK]


# --- settings and files -----------------------------------------------------------------------------------------------


def test_a_relaxed_setting_the_wrong_profile_and_the_demo_each_fail() -> None:
    well = Settings(server=ServerSettings(profile="production"))
    ill = Settings(identity=IdentitySettings(mfa_required="none"))

    assert levels(list(settings_checks(well))) == {
        "profile": Level.OK,
        "relaxed settings": Level.OK,
        "demo model": Level.FAILED,
    }
    assert levels(list(settings_checks(ill)))["profile"] is Level.FAILED
    assert levels(list(settings_checks(ill)))["setting MFA_REQUIRED"] is Level.FAILED


def test_secrets_belong_into_files_of_their_own(host: MovedHost) -> None:
    places = places_of(host.environment)
    well = list(credential_checks(places))
    host.write(
        "etc/secure_llm_proxy/env",
        "SECRET_KEY=abc\nOPENAI_API_KEY='sk-1'\nDATABASE_URL=postgresql://slp:pw@localhost/slp\nREDIS_URL=redis://localhost/0\n",
    )
    shutil.move(
        host.path("etc/secure_llm_proxy/audit-credentials/audit_kek"),
        host.path("etc/secure_llm_proxy/credentials/audit_kek"),
    )

    ill = {check.what: check for check in credential_checks(places)}

    assert troubles(well) == []
    assert ill["secrets in env"].level is Level.FAILED
    assert "DATABASE_URL, OPENAI_API_KEY, SECRET_KEY" in ill["secrets in env"].found
    assert ill["secrets in audit.env"].level is Level.OK
    assert "audit_kek is handed to the web service" in ill["credentials"].found


@pytest.mark.parametrize(
    ("place", "mode", "most"),
    [
        ("env", 0o644, "0640"),
        ("audit.env", 0o660, "0640"),
        ("credentials", 0o755, "0700"),
        ("credentials/secret_key", 0o640, "0600"),
        ("audit-credentials/audit_kek", 0o604, "0600"),
        ("models.yaml", 0o664, "0644"),
    ],
)
def test_a_file_that_too_many_may_read_or_write_is_named_with_its_cure(
    host: MovedHost, place: str, mode: int, most: str
) -> None:
    places = places_of(host.environment)
    well = list(settings_file_checks(places, owner=ME))
    host.path(f"etc/secure_llm_proxy/{place}").chmod(mode)

    [ill] = list(settings_file_checks(places, owner=ME))

    assert levels(well) == {f"files in {places.settings}": Level.OK}
    assert (ill.what, ill.level) == (f"file {places.settings / place}", Level.FAILED)
    assert f"where {most} is the most" in ill.found
    assert ill.fix.startswith("chmod ")


def test_a_private_key_among_the_settings_is_for_its_owner_alone(host: MovedHost) -> None:
    places = places_of(host.environment)
    tls = make_certificate(host.machine / "etc/secure_llm_proxy/tls")
    for path in tls.key.parent.iterdir():
        if path not in {tls.key, tls.certificate}:
            path.unlink()
    tls.key.chmod(0o640)

    [found] = list(settings_file_checks(places, owner=ME))

    assert (found.what, "0600 is the most" in found.found) == (f"file {tls.key}", True)


def test_whatever_is_not_its_owners_is_named(host: MovedHost) -> None:
    places = places_of(host.environment)

    found = list(settings_file_checks(places, owner=ME + 1))

    assert {check.level for check in found} == {Level.FAILED}
    assert f"file {places.settings / 'credentials' / 'secret_key'}" in levels(found)
    assert all(check.found.startswith("belongs to ") for check in found)


def test_code_that_somebody_else_may_change_is_found_wherever_the_way_to_it_is_open(host: MovedHost) -> None:
    places = places_of(host.environment)

    def outside_of_the_tests_own_folder() -> list[str]:
        [check] = list(code_checks(places, owner=ME))
        return [part for part in check.found.split(": ")[-1].split(", ") if part.startswith(str(host.machine))]

    well = outside_of_the_tests_own_folder()
    host.write("opt/secure_llm_proxy.releases/1/secure_llm_proxy/x.py").chmod(0o664)
    file = outside_of_the_tests_own_folder()
    host.path("opt/secure_llm_proxy.releases/1/secure_llm_proxy/x.py").chmod(0o644)
    host.path("opt/secure_llm_proxy.releases").chmod(0o777)
    folder = outside_of_the_tests_own_folder()

    assert well == []
    assert file == [str(host.machine / "opt/secure_llm_proxy.releases/1/secure_llm_proxy/x.py")]
    assert folder == [str(host.machine / "opt/secure_llm_proxy.releases")]


def test_what_the_web_user_can_open_is_found_by_trying(host: MovedHost) -> None:
    places = places_of(host.environment)
    segment = host.write("var/lib/secure-llm-audit/segments/host/1.jsonl", "line")
    keys = host.write("var/lib/secure-llm-audit/keys/epoch.key", "key", mode=0o600)
    for path in (host.machine, *host.machine.parents):
        if str(path).startswith("/tmp/") and path != Path("/tmp"):  # noqa: S108  pytest's own folders, opened on their way
            path.chmod(0o755)
    for path in (segment.parent.parent, keys.parent, host.path("etc/secure_llm_proxy/audit-credentials")):
        path.chmod(0o700)

    if ME != 0:
        [unseen] = list(audit_file_checks(places, web_user=OTHER_USER, audit_group=OTHER_USER))
        assert unseen.level is Level.UNKNOWN
        return
    shut = list(audit_file_checks(places, web_user=OTHER_USER, audit_group=OTHER_USER))
    keys.parent.chmod(0o755)
    keys.chmod(0o644)
    opened = list(audit_file_checks(places, web_user=OTHER_USER, audit_group=OTHER_USER))
    nobody = list(audit_file_checks(places, web_user="no-such-user"))

    assert [check.level for check in (*shut, *opened, *nobody)] == [Level.OK, Level.FAILED, Level.FAILED]
    assert str(keys) in opened[0].found
    assert "no-such-user" in nobody[0].found
    assert readable_by(OTHER_USER, [keys, segment]) == [str(keys)]


def test_what_this_user_may_not_see_is_unknown_and_not_well(host: MovedHost) -> None:
    host.path("etc/secure_llm_proxy/credentials").chmod(0)
    program = (
        "import json, os, sys\n"
        "from secure_llm_proxy.cli.host.places import places_of\n"
        "from secure_llm_proxy.cli.production.attempts import guarded\n"
        "from secure_llm_proxy.cli.production.file_rights import audit_file_checks, settings_file_checks\n"
        "from secure_llm_proxy.cli.production.network import firewall_checks\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "places = places_of()\n"
        "found = [*guarded('files', lambda: settings_file_checks(places)), *audit_file_checks(places), *firewall_checks()]\n"
        "print(json.dumps([check.level for check in found]))\n"
    )
    for path in (host.machine, *host.machine.parents):
        if str(path).startswith("/tmp/") and path != Path("/tmp"):  # noqa: S108
            path.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-c", program], env={**host.environment, "PYTHONPATH": str(ROOT)},
        cwd="/", capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip

    assert json.loads(done.stdout) == ["unknown"] * 4


def test_a_look_that_fails_for_want_of_a_right_is_unknown() -> None:
    def refused() -> list[Check]:
        raise PermissionError(13, "Permission denied", "/etc/secret")

    [check] = guarded("secrets", refused)

    assert (check.level, "/etc/secret" in check.found) == (Level.UNKNOWN, True)


# --- nginx ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nginx(short_folder: Path, tmp_path: Path) -> Iterator[PrivateNginx]:
    certificate = make_faulty_certificate(tmp_path / "tls", days=(-1, 90))
    folder = short_folder / f"p-{tmp_path.name[-12:]}"
    with PrivateNginx(folder, certificate, socket=folder / "none.sock") as server:
        yield server


def test_the_shipped_site_passes_but_for_an_authority_that_nobody_knows(host: MovedHost, nginx: PrivateNginx) -> None:
    host.take_site_of(nginx)

    found = list(edge_checks(Settings(), places_of(host.environment)))

    assert levels(found) == {
        "nginx's site": Level.OK,
        "largest body": Level.OK,
        "room for requests": Level.OK,
        "TLS protocols": Level.OK,
        "certificate": Level.OK,
        "certificate's authority": Level.WARNING,
        "HSTS": Level.OK,
        "plain HTTP": Level.OK,
    }


def test_a_site_that_offers_old_protocols_or_is_not_there_fails(host: MovedHost, nginx: PrivateNginx) -> None:
    places = places_of(host.environment)
    missing = list(edge_checks(Settings(), places))
    host.take_site_of(nginx)
    site = host.path("etc/nginx/sites-enabled/secure_llm_proxy.conf")
    site.write_text(site.read_text().replace("ssl_protocols TLSv1.2", "ssl_protocols TLSv1.1 TLSv1.2"))

    offered = levels(list(edge_checks(Settings(), places)))

    assert levels(missing) == {"nginx's site": Level.FAILED}
    assert offered["TLS protocols"] is Level.FAILED


def test_limits_that_nginx_was_not_told_of_are_found(host: MovedHost, nginx: PrivateNginx) -> None:
    places = places_of(host.environment)
    host.take_site_of(nginx)
    site = host.path("etc/nginx/sites-enabled/secure_llm_proxy.conf")
    main = host.path("etc/nginx/nginx.conf")

    def judged(
        what: str, *, body: int = 8 << 20, workers: int = 1, connections: int = 1024, at_once: int = 341
    ) -> Check:
        site.write_text(re.sub("max_conns=[0-9]+", f"max_conns={at_once}", site.read_text("utf-8")), "utf-8")
        main.write_text(f"# worker_connections 1;\nevents {{\n\tworker_connections {connections};\n}}\n", "utf-8")
        settings = Settings(limits=LimitSettings(body_bytes_max=body), server=ServerSettings(workers=workers))
        [check] = [check for check in edge_checks(settings, places) if check.what == what]
        assert check.level is Level.OK or "scripts/install --services-only" in check.fix
        return check

    refused_by_nginx = judged("largest body", body=(9 << 20) + 1)
    assert "MAX_REQUEST_SIZE is 9437185, nginx takes 9437184" in refused_by_nginx.found
    assert [
        judged("largest body").level,
        refused_by_nginx.level,
        judged("largest body", body=1 << 20).level,
    ] == [Level.OK, Level.FAILED, Level.WARNING]
    assert [
        judged("room for requests").level,
        judged("room for requests", connections=600).level,
        judged("room for requests", connections=4096, at_once=1365).level,
        judged("room for requests", connections=4096, at_once=1365, workers=2).level,
    ] == [Level.OK, Level.FAILED, Level.WARNING, Level.OK]
    main.unlink()
    found = levels(list(edge_checks(Settings(), places)))
    assert (found["room for requests"], found["HSTS"]) == (Level.UNKNOWN, Level.OK)


def test_a_certificate_with_three_weeks_left_fails(host: MovedHost, short_folder: Path, tmp_path: Path) -> None:
    certificate = make_faulty_certificate(tmp_path / "tls", days=(-1, 20))
    folder = short_folder / f"c-{tmp_path.name[-12:]}"
    with PrivateNginx(folder, certificate, socket=folder / "none.sock") as server:
        host.take_site_of(server)

        found = levels(list(edge_checks(Settings(), places_of(host.environment))))

    assert found["certificate"] is Level.FAILED


# --- stores -----------------------------------------------------------------------------------------------------------


def test_a_postgresql_of_ours_keeps_scram_and_loopback_and_its_superuser_is_told(
    host: MovedHost, postgresql: PrivatePostgreSQL
) -> None:
    settings = Settings(database=DatabaseSettings(url=SecretStr(postgresql.create_database())))
    host.write(
        "etc/postgresql/15/main/pg_hba.conf", "local all postgres peer\nhost all all 127.0.0.1/32 scram-sha-256\n"
    )

    found = levels(list(postgresql_checks(settings, places_of(host.environment))))

    assert found["PostgreSQL's passwords"] is Level.OK
    assert found["PostgreSQL's addresses"] is Level.OK
    assert found["PostgreSQL's pg_hba.conf"] is Level.OK


def test_sqlite_and_a_database_that_is_away_fail(host: MovedHost) -> None:
    places = places_of(host.environment)
    sqlite = Settings(database=DatabaseSettings(url=SecretStr("sqlite:////none")))
    away = Settings(database=DatabaseSettings(url=SecretStr("postgresql+psycopg2://slp:pw@127.0.0.1:9/slp")))

    assert levels(list(postgresql_checks(sqlite, places))) == {"PostgreSQL": Level.FAILED}
    assert levels(list(postgresql_checks(away, places))) == {"PostgreSQL": Level.FAILED}


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("local all all trust", "trust"),
        ("host all all 127.0.0.1/32 md5", "md5"),
        ("host all all 10.0.0.0 255.0.0.0 password # old", "password"),
        ("hostssl all all ::1/128 trust", "trust"),
        ("host all all all", "no method"),
        ("local all postgres peer", None),
        ("host all all 10.0.0.0 255.0.0.0 scram-sha-256", None),
        ("hostssl all all samehost cert clientcert=verify-full", None),
        ("# host all all all trust", None),
    ],
)
def test_of_pg_hba_entries_those_that_trust_are_named(line: str, method: str | None) -> None:
    found = list(weak_entries(f"\n{line}\n"))

    assert found == ([] if method is None else [(2, method)])


def test_a_redis_of_ours_passes_and_each_thing_wrong_with_one_is_told(tmp_path: Path) -> None:
    def found_at(server: PrivateRedis) -> dict[str, Level]:
        return levels(list(redis_checks(Settings(redis=RedisSettings(url=SecretStr(server.url))))))

    with PrivateRedis(password="correct-horse-battery") as strict:
        well = found_at(strict)
    with PrivateRedis() as open_to_all:
        ill = found_at(open_to_all)
    away = levels(list(redis_checks(Settings(redis=RedisSettings(url=SecretStr("redis://127.0.0.1:9/0"))))))

    assert well["Redis' password"] is Level.OK
    assert ill["Redis' password"] is Level.FAILED
    assert {"Redis' memory", "Redis' addresses"} <= well.keys()
    assert away == {"Redis": Level.FAILED}


# --- network ----------------------------------------------------------------------------------------------------------


def test_a_port_that_listens_to_everybody_is_told_and_one_on_loopback_is_not(host: MovedHost) -> None:
    proc = host.path("proc/net")
    proc.symlink_to("/proc/net")
    places = places_of(host.environment)
    with socket.create_server(("127.0.0.1", 0)) as inside, socket.create_server(("0.0.0.0", 0)) as outside:  # noqa: S104
        here, there = inside.getsockname()[1], outside.getsockname()[1]

        heard = set(listening(proc))
        [check] = list(port_checks(places))

    assert {("127.0.0.1", here), ("0.0.0.0", there)} <= heard  # noqa: S104
    assert (check.level, f"port {there}" in check.found, f"port {here}" in check.found) == (Level.WARNING, True, False)


def chain(
    hook: str, policy: str, *, family: str = "inet", table: str = "filter", name: str = "input"
) -> dict[str, object]:
    return {"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}}


def rule(*expression: dict[str, object], table: str = "filter", in_chain: str = "input") -> dict[str, object]:
    return {"rule": {"family": "inet", "table": table, "chain": in_chain, "expr": list(expression)}}


def test_a_firewall_is_one_that_turns_the_rest_away() -> None:
    by_policy = [chain("input", "drop")]
    by_rule = [chain("input", "accept"), rule({"jump": {"target": "rest"}}), rule({"reject": None}, in_chain="rest")]
    open_to_all = [chain("input", "accept"), rule({"accept": None}), rule({"drop": None}, in_chain="unused")]

    assert [firewall_in(rules).level for rules in (by_policy, by_rule, open_to_all, [])] == [
        Level.OK, Level.OK, Level.FAILED, Level.FAILED,
    ]  # fmt: skip


def test_the_egress_filter_is_ours_and_at_the_output() -> None:
    ours = [
        chain("output", "accept", table="slp_egress", name="output"),
        rule({"jump": {"target": "web"}}, table="slp_egress", in_chain="output"),
        rule({"goto": {"target": "refused"}}, table="slp_egress", in_chain="web"),
        rule({"reject": {}}, table="slp_egress", in_chain="refused"),
    ]

    assert egress_in(ours).level is Level.OK
    assert egress_in([chain("output", "drop", table="another", name="output")]).level is Level.FAILED
    assert egress_in(ours[:2]).level is Level.FAILED


# --- what remains -----------------------------------------------------------------------------------------------------


def test_a_backup_needs_a_recipient_whose_identity_is_elsewhere(host: MovedHost) -> None:
    places = places_of(host.environment)
    missing = {check.what: check.level for check in backup_checks(places)}
    host.write("etc/secure_llm_proxy/backup-recipient", "AGE-SECRET-KEY-1\n")
    [held, _] = list(backup_checks(places))
    host.write("etc/secure_llm_proxy/backup-recipient", "# ours\nage1qqq\n")
    [well, none] = list(backup_checks(places))

    assert missing == {"backup recipient": Level.FAILED, "backup": Level.FAILED}
    assert (held.level, "private identity" in held.found) == (Level.FAILED, True)
    assert (well.level, none.level) == (Level.OK, Level.FAILED)


def test_kept_anchors_are_told_by_their_age(host: MovedHost) -> None:
    places = places_of(host.environment)
    [missing] = list(anchor_checks(places))
    kept = host.write("var/lib/secure-llm-anchors/anchors.jsonl", "{}\n")
    [fresh] = list(anchor_checks(places))
    os.utime(kept, (0, 0))
    [old] = list(anchor_checks(places))

    assert [missing.level, fresh.level, old.level] == [Level.WARNING, Level.OK, Level.WARNING]
