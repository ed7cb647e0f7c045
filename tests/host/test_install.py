"""scripts/install and scripts/uninstall on clean systems: told, repeated, killed, refused, taken off again."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.acme_server import AcmeServer
from tests.support.debian_machine import DebianMachine
from tests.support.debian_roots import Release, wheels_for
from tests.support.host_world import PROVIDER
from tests.support.installed_host import DOMAIN, InstalledHost
from tests.support.programs import wait_until

_INSTALL = ("sh", "/src/scripts/install", "--offline", "/wheels", "--self-signed", "--domain", "llm.example.test")
_READY = (
    "curl", "-sk", "--resolve", "llm.example.test:443:127.0.0.1", "-o", "/dev/null", "-w", "%{http_code}",
    "https://llm.example.test/health/ready",
)  # fmt: skip
_SECRETS = ("AGE-SECRET-KEY-", "slp_setup_", "private half")
_OURS = ("/etc/secure_llm_proxy", "/var/lib/secure_llm_proxy", "/var/lib/secure-llm-audit", "/opt/secure_llm_proxy")
# Ends the whole run as soon as it says a line, as a power cut would.
_KILL_AT = """
rm -f /var/said
setsid sh /src/scripts/install --offline /wheels --self-signed --domain llm.example.test >/var/said 2>&1 &
run=$!
while ! grep -q "$1" /var/said; do
    kill -0 "$run" 2>/dev/null || { cat /var/said; exit 3; }
    sleep 0.01
done
kill -9 "-$run" || exit 4
wait "$run" || :
"""
# As the service's own user, among the service's own mounts.
_LOOK = """
import json, os, sys
told = {}
for path in sys.argv[1].split():
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            open(path, "rb").close()
        told[path] = "opened"
    except OSError as error:
        told[path] = type(error).__name__
for folder in sys.argv[2].split():
    path = os.path.join(folder, "planted")
    try:
        open(path, "x").close()
        os.unlink(path)
        told[folder] = "written"
    except OSError as error:
        told[folder] = type(error).__name__
print(json.dumps(told))
"""


# Whoever owns a database says where its sessions look names up.
_PLANTED = """
ALTER DATABASE secure_llm_proxy SET search_path = public, pg_catalog;
CREATE FUNCTION public.planted() RETURNS name LANGUAGE plpgsql AS $$ BEGIN
    IF current_user = 'postgres' THEN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''id >/var/lib/postgresql/planted'''; END IF;
    RETURN 'public';
END $$;
CREATE VIEW public.pg_tables AS SELECT public.planted() AS schemaname;
"""
_PLANTED_AWAY = """
DROP VIEW public.pg_tables;
DROP FUNCTION public.planted();
ALTER DATABASE secure_llm_proxy RESET search_path;
"""


@pytest.fixture
def bare(release: Release, source: Path, tmp_path: Path) -> Iterator[DebianMachine]:
    """A clean Debian for one test, with nobody to talk to."""
    binds = {source: "/src", wheels_for(release): "/wheels"}
    with DebianMachine(release, tmp_path / "bare", name=f"bare{release.version}", binds=binds) as machine:
        yield machine


def test_an_installation_is_told_first_survives_being_killed_and_goes_with_or_without_its_data(
    bare: DebianMachine,
) -> None:
    bare.run("touch", "/var/mark")

    dry = bare.run(*_INSTALL, "--dry-run")

    changed = bare.told("find", "/etc", "/opt", "/usr", "/var/lib", "/srv", "-newer", "/var/mark", "-type", "f")
    assert changed == ""
    for told in (
        "would install the packages",
        "would draw the secret",
        "would write /etc/systemd/system/",
        "would start",
    ):
        assert told in dry.stderr

    for line in (
        "make its Python environment",
        "draw the password of the database role",
        "begin the audit log",
        "write /etc/systemd/system/secure_llm_proxy.service",
    ):
        bare.run("sh", "-c", _KILL_AT, "sh", line, timeout=600)
    finished = bare.run(*_INSTALL, timeout=600)

    assert bare.told(*_READY) == "200"
    assert bare.run("sh", "-c", "ls -A /run | grep secure-llm-install", check=False).stdout == ""
    assert not any(secret in finished.stderr for secret in _SECRETS)
    again = bare.run(*_INSTALL)
    assert "Nothing had to be changed" in again.stderr
    assert again.stdout == ""

    bare.run("secure-llm-proxy", "create-api-key", "--user", "admin", "--name", "kept")
    before = json.loads(bare.run("secure-llm-proxy", "audit", "verify", "--json").stdout)
    bare.run("sh", "/opt/secure_llm_proxy/scripts/uninstall")

    assert bare.told("sh", "-c", "ls /etc/systemd/system /usr/local/sbin /opt | grep secure || true") == ""
    assert bare.run("nginx", "-t").returncode == 0
    assert bare.told("grep", "worker_connections", "/etc/nginx/nginx.conf").strip() == "worker_connections 768;"
    assert bare.told("redis-cli", "ping") == "PONG"

    shown = bare.run(*_INSTALL, timeout=600).stdout
    keys = json.loads(bare.run("secure-llm-proxy", "list-api-keys", "--json").stdout)
    after = json.loads(bare.run("secure-llm-proxy", "audit", "verify", "--json").stdout)
    assert shown == ""
    assert [key["name"] for key in keys] == ["kept"]
    assert [before["outcome"], after["outcome"]] == ["ok", "ok"]
    assert after["records"] >= before["records"]

    bare.run("sh", "/src/scripts/uninstall", "--purge-data")

    assert bare.told("sh", "-c", f"ls -d {' '.join(_OURS)} 2>/dev/null || true") == ""
    databases = bare.told("runuser", "-u", "postgres", "--", "psql", "-Atc", "SELECT datname FROM pg_database")
    assert "secure_llm_proxy" not in databases
    assert bare.run("getent", "passwd", "secure_llm_proxy", check=False).returncode != 0
    assert bare.run("sh", "/src/scripts/uninstall").stderr.startswith("Nothing had to be changed")


def test_what_others_run_on_the_host_stays_as_it_is_or_is_refused_before_anything_changes(bare: DebianMachine) -> None:
    packages = ("nginx-light", "redis-server", "postgresql")
    bare.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages, timeout=600)
    bare.run("runuser", "-u", "postgres", "--", "createdb", "shop")
    bare.run("redis-cli", "set", "theirs", "1")

    refused = [bare.run(*_INSTALL, check=False)]
    bare.run("redis-cli", "del", "theirs")
    bare.run("sh", "-c", "echo '# mine' >>/etc/nginx/sites-available/default")
    refused.append(bare.run(*_INSTALL, check=False))
    left = bare.told("sh", "-c", f"ls -d {' '.join(_OURS)} 2>/dev/null || true")
    bare.run("sed", "-i", "s/ default_server//", "/etc/nginx/sites-available/default")
    bare.run("systemctl", "reload", "nginx")
    bare.run(*_INSTALL, timeout=600)

    assert [run.returncode for run in refused] == [1, 1]
    assert "the Redis of this host is in use" in refused[0].stderr
    assert "the nginx site /etc/nginx/sites-enabled/default is the default one" in refused[1].stderr
    assert left == ""
    assert bare.told(*_READY) == "200"
    assert (
        bare.told(
            "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: llm.example.test", "http://127.0.0.1/"
        )
        == "308"
    )
    assert bare.run("test", "-L", "/etc/nginx/sites-enabled/default").returncode == 0
    assert bare.told("sh", "-c", "ls /etc/postgresql/*/main/conf.d") == ""
    databases = bare.told("runuser", "-u", "postgres", "--", "psql", "-Atc", "SELECT datname FROM pg_database")
    assert {"shop", "secure_llm_proxy"} <= set(databases.splitlines())


def test_a_second_run_on_a_serving_host_changes_nothing_and_shows_no_secret_again(host: InstalledHost) -> None:
    pid = host.machine.main_pid("secure_llm_proxy.service")

    again = host.machine.run("sh", "/src/scripts/install", "--offline", "/wheels")

    assert "Nothing had to be changed" in again.stderr
    assert again.stdout == ""
    assert host.machine.main_pid("secure_llm_proxy.service") == pid


def test_what_the_services_role_puts_into_its_database_never_runs_with_the_superusers_rights(
    host: InstalledHost,
) -> None:
    machine, secret = host.machine, "/etc/secure_llm_proxy/credentials/secret_key"
    psql = 'psql -X -q -v ON_ERROR_STOP=1 "$(cat /etc/secure_llm_proxy/credentials/database_url)"'
    machine.run("sh", "-c", psql, stdin=_PLANTED)
    # The installer looks into the database where its secret is gone.
    machine.run("mv", secret, "/srv/secret_key.away")
    try:
        looked = machine.run("sh", "/src/scripts/install", "--offline", "/wheels", check=False)
    finally:
        machine.run("mv", "/srv/secret_key.away", secret)
        machine.run("sh", "-c", psql, stdin=_PLANTED_AWAY)
        # The list of places is made anew whenever the credentials change; without the secret it failed.
        machine.wait_for("systemctl", "start", "secure-llm-egress-places.service", what="the list of places is made")

    assert "a database secure_llm_proxy is on this host" in looked.stderr
    assert machine.run("test", "-e", "/var/lib/postgresql/planted", check=False).returncode == 1


def test_a_certificate_that_is_not_for_the_key_or_the_name_is_refused(host: InstalledHost) -> None:
    machine = host.machine
    made = (
        "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=other.example.test"
    )
    machine.run(
        "sh", "-c", f"{made} -addext subjectAltName=DNS:other.example.test -keyout /run/other.key -out /run/other.pem"
    )
    served = machine.told("cat", "/etc/secure_llm_proxy/tls/certificate.pem")

    wrong_key = machine.run(
        "sh", "/src/scripts/install", "--tls-cert", "/etc/secure_llm_proxy/tls/certificate.pem", "--tls-key", "/run/other.key",
        check=False,
    )  # fmt: skip
    wrong_name = machine.run(
        "sh", "/src/scripts/install", "--tls-cert", "/run/other.pem", "--tls-key", "/run/other.key", check=False
    )

    assert [wrong_key.returncode, wrong_name.returncode] == [1, 1]
    assert "is not the key of" in wrong_key.stderr
    assert "is not for llm.example.test" in wrong_name.stderr
    assert machine.told("cat", "/etc/secure_llm_proxy/tls/certificate.pem") == served


def test_certbots_certificate_is_served_renewed_and_kept_when_its_authority_refuses(host: InstalledHost) -> None:
    machine = host.machine
    install_again = ("sh", "/src/scripts/install", "--offline", "/wheels")
    with AcmeServer(PROVIDER) as authority:
        # As for an authority of one's own; certbot's default is Let's Encrypt.
        machine.run(
            "sh", "-c", f"mkdir -p /etc/letsencrypt && echo 'server = {authority.directory}' >/etc/letsencrypt/cli.ini"
        )
        try:
            authority.refuses = True
            refused = machine.run(*install_again, "--certbot", "--email", "ops@example.test", check=False, timeout=600)
            serving_then = host.ask("GET", "/health/ready").status
            authority.refuses = False
            machine.run(*install_again, "--certbot", "--email", "ops@example.test", timeout=600)
            wait_until_newest_is_served(authority)
            again = machine.run(*install_again)
            # As certbot's own timer does when a certificate is old, which waits up to eight minutes first.
            machine.run("certbot", "renew", "--force-renewal", "--no-random-sleep-on-renew", timeout=180)
            wait_until_newest_is_served(authority)
            looked = machine.run("systemctl", "start", "secure-llm-certificates.service", check=False)
        finally:
            machine.run(
                *install_again, "--tls-cert", "/srv/handed-over/tls.pem", "--tls-key", "/srv/handed-over/tls.key"
            )
            machine.run(
                "sh",
                "-c",
                "apt-get purge -y -q certbot; rm -rf /etc/letsencrypt /var/lib/letsencrypt /var/log/letsencrypt",
            )

    assert refused.returncode == 1
    assert "certbot got no certificate" in refused.stderr
    assert serving_then == 200
    assert authority.contacts == ["mailto:ops@example.test"]
    assert len({each.serial_number for each in authority.issued}) == 2
    assert "Nothing had to be changed" in again.stderr
    assert looked.returncode == 0
    # nginx may still be on its way back to the certificate that this host's clients trust.
    host.wait_until_ready()
    assert host.chat().status == 200


def wait_until_newest_is_served(authority: AcmeServer) -> None:
    """A reload of nginx is over some time after it was asked for."""
    newest = authority.issued[-1].serial_number
    wait_until(lambda: served_serial(authority) == newest, what="nginx serves the newest certificate", seconds=60)


def served_serial(authority: AcmeServer) -> int:
    """Of the certificate that a client gets who trusts this authority alone; 0 when it gets none, or another's."""
    context = ssl.create_default_context(cadata=authority.authority_pem)
    try:
        with (
            socket.create_connection((DOMAIN, 443), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=DOMAIN) as secured,
        ):
            certificate = secured.getpeercert(binary_form=True)
    except OSError:
        # A certificate of another authority, or nginx in the midst of its reload.
        return 0
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate).serial_number


def test_the_web_service_opens_no_audit_file_and_no_key_and_writes_nowhere_but_in_its_own_folders(
    host: InstalledHost,
) -> None:
    machine = host.machine
    closed = (
        "/var/lib/secure-llm-audit /var/lib/secure-llm-audit/segments /var/lib/secure-llm-audit/keys "
        "/var/lib/secure-llm-audit/keys/keys.db /etc/secure_llm_proxy/credentials /etc/secure_llm_proxy/audit-credentials "
        "/etc/secure_llm_proxy/audit-credentials/audit_kek /etc/secure_llm_proxy/tls /etc/secure_llm_proxy/tls/key.pem "
        "/run/secure-llm-audit/control.sock /var/backups/secure_llm_proxy /var/log/nginx/secure_llm_proxy.access.jsonl"
    )
    folders = (
        "/ /etc /etc/secure_llm_proxy /opt/secure_llm_proxy /usr/bin /var /var/lib /var/log /run /run/secure-llm-audit "
        "/srv /boot /var/log/nginx /var/lib/secure_llm_proxy /var/log/secure_llm_proxy /run/secure-llm-egress /run/secure_llm_proxy"
    )
    own = {"/var/lib/secure_llm_proxy", "/var/log/secure_llm_proxy", "/run/secure_llm_proxy"}

    told = json.loads(
        machine.told(
            "nsenter", "-t", str(machine.main_pid("secure_llm_proxy.service")), "-m",
            "setpriv", "--reuid", "secure_llm_proxy", "--regid", "secure_llm_proxy", "--groups", "secure-llm-audit",
            "/usr/bin/python3", "-I", "-c", _LOOK, closed, folders,
        )
    )  # fmt: skip

    assert {path: told[path] for path in closed.split()} == dict.fromkeys(closed.split(), "PermissionError")
    assert {folder for folder in folders.split() if told[folder] == "written"} == own


def test_every_unit_verifies_in_silence_and_is_exposed_to_2_of_10_at_most(host: InstalledHost) -> None:
    machine = host.machine
    units = machine.told("sh", "-c", "cd /etc/systemd/system && find secure* -maxdepth 0 -type f").split()

    verified = machine.run("systemd-analyze", "--man=no", "verify", *units)
    exposed = {
        unit: machine.run("systemd-analyze", "security", "--threshold=20", "--no-pager", unit, check=False).returncode
        for unit in units
        if unit.endswith(".service")
    }

    assert {"secure_llm_proxy.service", "secure-llm-audit.service", "secure_llm_proxy.socket"} <= set(units)
    assert verified.stdout + verified.stderr == ""
    assert exposed == dict.fromkeys(exposed, 0)


def test_no_secret_stands_in_the_journal_or_in_a_process_list(host: InstalledHost) -> None:
    machine = host.machine
    secrets = machine.told(
        "sh", "-c", "cat /etc/secure_llm_proxy/credentials/* /etc/secure_llm_proxy/audit-credentials/*"
    )

    machine.write_journal()
    journal = machine.told("journalctl", "--no-pager", "-b")
    postgresql = machine.told("sh", "-c", "cat /var/log/postgresql/*.log")
    processes = machine.told("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")

    for secret in [
        *secrets.split(),
        *(line for line in host.said.split() if line.startswith(("AGE-SECRET-KEY-", "slp_setup_"))),
    ]:
        assert secret not in journal
        assert secret not in postgresql
        assert secret not in processes
