"""The container image and the compose files at work: built without a registry, run as each service's own user."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from tests.support.certificates import make_certificate
from tests.support.clients import Answer, ask, sdk
from tests.support.compose_host import ComposeHost, Container, json_of, processes_of, status_of
from tests.support.debian_roots import Release
from tests.support.host_world import World
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.product_image import Image, product_image
from tests.support.programs import wait_until
from tests.support.provider import Provider

NOTHING = "0000000000000000"
CLIENT = {"User-Agent": "app/1.0"}


@dataclass(frozen=True, slots=True)
class Door:
    base_url: str
    authority: Path | None = None

    def client_tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=str(self.authority)) if self.authority else None

    def chat(self, key: str) -> Answer:
        return ask(self, "POST", "/chat", key=key, body={"prompt": "Is all well?"}, headers=CLIENT)


@pytest.fixture(scope="module")
def image(release: Release, source: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with product_image(release, source, tmp_path_factory.mktemp("image") / "builder") as made:
        yield made


@pytest.fixture
def folder(short_folder: Path, release: Release) -> Path:
    """Short, because unix sockets stand in volumes."""
    return short_folder / f"compose-{release.version}-{secrets.token_hex(2)}"


def secrets_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


def make_secrets(docker: Path, folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [str(docker / "make-secrets"), *map(str, arguments), str(folder)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


@contextmanager
def postgresql_of(docker: Path, rooms: Path) -> Iterator[PrivatePostgreSQL]:
    """A cluster where compose's would be, after what its container runs on an empty volume."""
    cluster = PrivatePostgreSQL()
    cluster.port = 5432
    with cluster:
        shared = cluster.directory / "shared"
        shared.mkdir()
        shutil.copy(docker.parent / "postgresql" / "role.sql", shared / "role.sql")
        shutil.copy(docker.parent / "postgresql" / "secure_llm_proxy.conf", shared / "postgresql.conf")
        url = urlsplit(cluster.url_of("postgres"))
        environment = {
            "PATH": os.environ["PATH"], "PGHOST": "127.0.0.1", "PGPORT": "5432", "PGPASSWORD": url.password or "",
            "POSTGRES_USER": "postgres", "PGDATA": str(cluster.directory / "data"),
            "CREDENTIALS_DIRECTORY": str(rooms / "postgresql"), "SLP_SHARED": str(shared),
        }  # fmt: skip
        done = subprocess.run(
            [str(docker / "postgresql-init.sh")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        yield cluster


def answers(door: Door) -> bool:
    try:
        return ask(door, "GET", "/health", headers=CLIENT).status == 200
    except OSError:
        return False


def zombies_of(container: Container) -> list[str]:
    return [child for child in children_of(container.leader) if ") Z " in read_of(child, "stat")]


def children_of(pid: int | str) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()


def read_of(pid: int | str, name: str) -> str:
    """A file of that process in /proc; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_the_image_holds_the_product_alone_and_no_root(image: Image) -> None:
    code = image.root / "opt" / "secure_llm_proxy"

    assert image.user == "10001:10001"
    assert image.health == ["/opt/secure_llm_proxy/deploy/docker/entrypoint", "health"]
    assert {path.name for path in code.iterdir()} == {
        "app.py", "manage.py", "gunicorn.conf.py", "requirements.txt", "config", "deploy", "migrations", "scripts",
        "secure_llm_proxy", "venv", "__pycache__",
    }  # fmt: skip
    for path in code.rglob("*"):
        found = path.lstat()
        assert found.st_uid == 0, path
        assert path.is_symlink() or found.st_mode & 0o022 == 0, path
        assert path.is_symlink() or found.st_mode & 0o004, path
    for compiler in ("cc", "gcc", "c++", "ld", "make"):
        assert not (image.root / "usr" / "bin" / compiler).exists()
    assert not list((code / "venv").rglob("pip"))
    assert not (image.root / "etc" / "pip.conf").exists()
    assert not (image.root / "wheels").exists()


def test_secrets_are_drawn_once_and_each_container_reads_its_own(source: Path, tmp_path: Path) -> None:
    docker, folder = source / "deploy" / "docker", tmp_path / "secrets"

    told = make_secrets(docker, folder, "--self-signed", "llm.example.org")
    first = secrets_in(folder)
    owners = {
        str(path.relative_to(folder)): (path.stat().st_uid, path.stat().st_gid, oct(path.stat().st_mode & 0o7777))
        for path in folder.rglob("*")
    }
    make_secrets(docker, folder)
    second = secrets_in(folder)

    assert second == first
    assert len({first[name] for name in ("web/secret_key", "web/encryption_key", "audit-writer/audit_kek")}) == 3
    assert not [text for text in first.values() if len(text) > 20 and text.strip() in told]
    rooms = {"web": 10001, "audit-writer": 10002, "auditor": 10002, "postgresql": 999, "redis": 999, "nginx": 101}
    for room, uid in rooms.items():
        # The folder is root's, so that nothing in it can lead elsewhere.
        assert owners[room] == (0, uid, "0o750")
        inside = {name: found for name, found in owners.items() if name.startswith(f"{room}/")}
        assert inside
        assert set(inside.values()) == {(uid, uid, "0o600")}


def test_a_secret_that_is_replaced_and_a_providers_key_reach_their_containers(source: Path, tmp_path: Path) -> None:
    docker, folder = source / "deploy" / "docker", tmp_path / "secrets"
    make_secrets(docker, folder, "--self-signed", "llm.example.org")
    before = secrets_in(folder)

    (folder / "web" / "secret_key").rename(folder / "web" / "secret_key_previous")
    (folder / "web" / "openai_api_key").write_text("sk-of-a-test\n")
    make_secrets(docker, folder)
    after = secrets_in(folder)
    (folder / "web" / "secret_key_previous").unlink()
    make_secrets(docker, folder)

    assert after["web/secret_key_previous"] == after["auditor/secret_key_previous"] == before["web/secret_key"]
    assert after["web/secret_key"] == after["auditor/secret_key"] != before["web/secret_key"]
    assert (folder / "web" / "openai_api_key").stat().st_uid == 10001
    assert not (folder / "auditor" / "secret_key_previous").exists()


def test_a_certificate_with_another_key_is_refused_and_nothing_is_replaced(source: Path, tmp_path: Path) -> None:
    docker, folder = source / "deploy" / "docker", tmp_path / "secrets"
    good, other = (make_certificate(tmp_path / name, names="DNS:localhost") for name in ("good", "other"))
    make_secrets(docker, folder, "--tls-cert", good.certificate, "--tls-key", good.key)
    before = secrets_in(folder)

    refused = subprocess.run(
        [docker / "make-secrets", "--tls-cert", good.certificate, "--tls-key", other.key, folder],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert refused.returncode == 1
    assert "is not that of the certificate" in refused.stderr
    assert secrets_in(folder) == before
    assert before["nginx/tls.key"] == good.key.read_text("utf-8")


def test_embedded_in_one_container(image: Image, source: Path, folder: Path, release: Release) -> None:
    file = source / "deploy" / "docker" / "compose.yaml"
    with ComposeHost([file], image, folder, f"e{release.version}") as host:
        early = host.run("proxy")
        first = host.run("proxy", "setup")
        second = host.run("proxy", "setup")
        (key,) = re.findall(r"slp_live_\w+", first.stdout)

        proxy = host.start("proxy")
        host.wait_until_healthy(proxy)
        answer = Door("http://127.0.0.1:5000").chat(key)
        tool = proxy.exec("secure-llm-proxy", "list-users", "--json")
        written = proxy.exec("sh", "-c", "touch /opt/secure_llm_proxy/x || touch /etc/x || touch /usr/x")
        status = status_of(proxy)
        ended = proxy.stop()

        assert early.returncode == 1
        assert "docker compose run --rm proxy setup" in early.stderr
        assert second.returncode == 0, second.stderr
        assert "slp_" not in second.stdout
        assert answer.json["model_used"] == "demo"
        assert [user["username"] for user in json_of(tool)] == ["admin"]
        assert written.returncode != 0
        assert "Read-only file system" in written.stderr
        assert status["Uid"].split() == ["10001"] * 4
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {NOTHING}
        assert status["NoNewPrivs"] == "1"
        assert ended == 0, proxy.said()
        assert "writer_stopped" in proxy.said()
        assert key not in proxy.said()
        owners = {path.stat().st_uid for path in host.volume("data").rglob("*")}
        assert owners == {10001}


def test_a_killed_server_comes_back_in_the_container_and_leaves_no_zombie(
    image: Image, source: Path, folder: Path, release: Release
) -> None:
    file = source / "deploy" / "docker" / "compose.yaml"
    with ComposeHost([file], image, folder, f"k{release.version}") as host:
        assert host.run("proxy", "setup").returncode == 0
        proxy = host.start("proxy")
        host.wait_until_healthy(proxy)
        (master,) = [int(child) for child in children_of(proxy.leader) if "gunicorn" in read_of(child, "cmdline")]
        workers = children_of(master)

        os.kill(master, signal.SIGKILL)

        wait_until(lambda: "starting it again child=server" in proxy.said(), what="the end of the server is told")
        # They would answer for the next one.
        wait_until(
            lambda: not any(read_of(worker, "stat") for worker in workers), what="the old workers have left", seconds=60
        )
        host.wait_until_healthy(proxy)
        wait_until(lambda: zombies_of(proxy) == [], what="nobody is left unreaped")
        assert proxy.stop() == 0


def test_production_apart_and_behind_tls(
    image: Image, source: Path, folder: Path, release: Release, tmp_path: Path
) -> None:
    docker = source / "deploy" / "docker"
    certificate = make_certificate(tmp_path / "tls", names="DNS:localhost")
    make_secrets(docker, tmp_path / "secrets", "--tls-cert", certificate.certificate, "--tls-key", certificate.key)
    drawn = {
        path.read_text("utf-8").strip().removeprefix("requirepass ")
        for room in ("web", "audit-writer", "postgresql", "redis")
        for path in (tmp_path / "secrets" / room).iterdir()
        if path.suffix != ".yaml"
    }
    variables = {"SLP_DOMAIN": "localhost", "SLP_SECRETS": str(tmp_path / "secrets"), "SLP_WORKERS": "2"}
    door = Door("https://localhost:8443", certificate.authority)
    host = ComposeHost([docker / "compose.production.yaml"], image, folder, f"p{release.version}", variables)
    with ExitStack() as running:
        provider = running.enter_context(Provider(stream_chunks=10, stream_pause_s=0.3))
        running.enter_context(host)
        # This system's nginx stands for the image's.
        told = (
            subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True)
            .stderr.strip()
            .rpartition("/")[2]
        )
        host.services["nginx-site"]["command"][2] = told
        host.services["web"]["environment"]["LLM_API_URL"] = f"{provider.base_url}/v1"
        database = running.enter_context(postgresql_of(docker, tmp_path / "secrets"))
        up: dict[str, Container] = {"redis": host.start("redis")}
        host.wait_until_healthy(up["redis"])

        # Before the log has begun, the writer says so instead of writing one that nobody owns.
        unbegun = host.run("audit-writer")
        begun = host.run("auditor", "audit", "init")
        for step in ("nginx-site", "migrate", "migrate"):
            done = host.run(step)
            assert done.returncode == 0, done.stdout + done.stderr
        for service in ("audit-writer", "web", "nginx"):
            up[service] = host.start(service)
            if service != "nginx":
                host.wait_until_healthy(up[service])
        wait_until(lambda: answers(door), what="nginx answers")

        made = up["web"].exec("secure-llm-proxy", "create-user", "--username", "alice", "--email", "alice@example.org")
        assert made.returncode == 0, made.stderr
        key = str(
            json_of(up["web"].exec("secure-llm-proxy", "create-api-key", "--user", "alice", "--name", "k", "--json"))[
                "key"
            ]
        )
        answer = door.chat(key)
        audited = host.run("auditor", "audit", "verify")
        found = host.run("auditor", "audit", "search", "--user", "alice", "--since", "1h", "--json")

        assert unbegun.returncode != 0
        assert "audit init" in unbegun.stderr
        assert "Owner key, private half" in begun.stdout, begun.stderr
        assert answer.status == 200, answer.body
        assert audited.returncode == 0, audited.stdout + audited.stderr
        assert "alice" not in found.stderr
        assert found.returncode == 0, found.stderr
        role_url = (tmp_path / "secrets" / "web" / "database_url").read_text("utf-8").strip()
        with (
            closing(psycopg2.connect(role_url.replace("@postgresql:", "@127.0.0.1:"))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
            assert cursor.fetchone() == (False,)
        # What the init step adds to the cluster's own file holds from its next start.
        database.stop()
        database.start()
        with closing(psycopg2.connect(database.url_of("postgres"))) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW log_min_error_statement")
            assert cursor.fetchone() == ("panic",)

        # Each is its own user and can do nothing else.
        for service, uid, groups in (
            ("web", "10001", "10002"),
            ("audit-writer", "10002", ""),
            ("nginx", "101", "10001"),
        ):
            status = status_of(up[service])
            assert status["Uid"].split() == [uid] * 4, service
            assert status["Groups"] == groups, service
            assert status["CapBnd"] == NOTHING, service
        # The web service has no way to the log's key or lines; the writer none to a network.
        peeked = up["web"].exec(
            "sh", "-c", "ls /var/lib/secure-llm-audit/* /run/secrets/audit_kek; cat /run/secrets/../secrets/audit*"
        )
        assert peeked.returncode != 0
        assert peeked.stdout == ""
        assert up["audit-writer"].exec("sh", "-c", "cat /proc/net/dev | grep -c :").stdout.strip() == "1"
        # No secret in an environment or on a command line.
        for container in up.values():
            for process in processes_of(container):
                assert not [secret for secret in drawn if secret in process["environ"] + process["cmdline"]], (
                    container.name
                )

        # A running stream outlives the stop of its web service; nginx and the writer end in order too.
        ended: dict[str, int] = {}
        with sdk(door, key).chat.completions.create(
            model="test-model",
            messages=[{"role": "user", "content": "go on"}],
            stream=True,
            extra_headers=CLIENT,
        ) as stream:
            pieces = iter(stream)
            next(pieces)
            stopping = threading.Thread(target=lambda: ended.update(web=up["web"].stop()))
            stopping.start()
            last = [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1]
            # Its own grace time.
            stopping.join(90)
        ended["nginx"] = up["nginx"].stop(with_signal=signal.SIGQUIT)
        ended["audit-writer"] = up["audit-writer"].stop()

        assert last == "stop"
        assert ended == {"web": 0, "nginx": 0, "audit-writer": 0}
        for container in up.values():
            assert not [secret for secret in (*drawn, key) if secret in container.said()], container.name
