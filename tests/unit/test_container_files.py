"""The compose files and the image's recipe hold what they promise: known settings, nothing published by accident, no secret."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from secure_llm_proxy.settings.loading import known_settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
FILES = sorted(DOCKER.glob("compose*.yaml"))
IMAGE = "secure-llm-proxy:"
# Read by the settings' loader itself.
PLACES = {"ENV_FILE", "CREDENTIALS_DIRECTORY"}
SETTINGS = {name for setting in known_settings() for name in (setting.name, *setting.synonyms)}
SECRETS = {name for setting in known_settings() if setting.secret for name in (setting.name, *setting.synonyms)}


# Other images' own words for a secret's file.
NOT_OURS = {"postgresql/superuser_password", "postgresql/role_password", "redis/requirepass", "nginx/tls"}


def document(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def services(path: Path) -> dict[str, dict[str, Any]]:
    """Those that the file describes whole; what it adds to another file's is not one."""
    return {name: service for name, service in document(path)["services"].items() if "image" in service}


def every_service() -> Iterator[Any]:
    for path in FILES:
        for name, service in services(path).items():
            yield pytest.param(service, id=f"{path.name}-{name}")


@pytest.mark.parametrize("service", list(every_service()))
def test_a_container_can_do_no_more_than_it_must(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["ulimits"]["core"] == 0
    assert service["logging"]["options"]["max-size"]
    # The image's own user is no root; other images say here who they are.
    assert service["image"].startswith(IMAGE) or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


@pytest.mark.parametrize("service", list(every_service()))
def test_a_container_of_ours_is_given_known_settings_and_no_secret(service: dict[str, Any]) -> None:
    given = service.get("environment", {})
    assert isinstance(given, dict)
    if service["image"].startswith(IMAGE):
        assert set(given) <= SETTINGS | PLACES
    # Addresses without a password are none.
    assert set(given) & SECRETS <= {"REDIS_URL"}
    assert "@" not in given.get("REDIS_URL", "")
    assert "env_file" not in service


@pytest.mark.parametrize("service", list(every_service()))
def test_what_is_published_names_its_address(service: dict[str, Any]) -> None:
    """A port without one is published on IPv6 too, where the engine hides clients' addresses behind its own, a private one."""
    for port in service.get("ports", []):
        assert re.match(r"(127\.0\.0\.1|\$\{SLP_ADDRESS:-0\.0\.0\.0\}):", port), port


def test_nothing_but_nginx_is_published_in_production_and_the_database_has_no_way_out() -> None:
    whole = document(DOCKER / "compose.production.yaml")
    several = services(DOCKER / "compose.ha.yaml")

    found = {**whole["services"], **several}
    assert [name for name, service in found.items() if "ports" in service] == ["nginx"]
    assert whole["networks"]["inside"] == {"internal": True}
    assert {name: service["networks"] for name, service in found.items() if "networks" in service} == {
        "nginx": ["edge"],
        "web": ["inside", "outside"],
        "web-2": ["inside", "outside"],
        "migrate": ["inside"],
        "auditor": ["inside"],
        "auditor-2": ["inside"],
        "postgresql": ["inside"],
        "redis": ["inside"],
    }
    for name in ("nginx-site", "audit-writer", "audit-writer-2"):
        assert found[name]["network_mode"] == "none"


def test_a_second_replica_is_like_the_first() -> None:
    first = services(DOCKER / "compose.production.yaml")
    second = services(DOCKER / "compose.ha.yaml")

    for name in ("web", "audit-writer", "auditor"):
        own, others = first[name], second[f"{name}-2"]
        differ = {key for key in own.keys() | others.keys() if own.get(key) != others.get(key)}
        assert differ <= {"volumes", "depends_on", "environment"}
        settings = {key for key, value in own["environment"].items() if others["environment"].get(key) != value}
        assert settings == ({"AUDIT_HOST_ID"} if name != "web" else set())
        assert len(own["volumes"]) == len(others["volumes"])


def test_each_container_is_given_its_own_folder_of_secrets_to_read() -> None:
    rooms = {
        name: [
            volume
            for volume in service.get("volumes", [])
            if isinstance(volume, dict) and volume["target"] == "/run/secrets"
        ]
        for path in FILES
        for name, service in services(path).items()
    }

    given = {name: mounts[0]["source"].rpartition("/")[2] for name, mounts in rooms.items() if mounts}
    assert given == {
        "web": "web", "web-2": "web", "migrate": "web", "audit-writer": "audit-writer", "audit-writer-2": "audit-writer",
        "auditor": "auditor", "auditor-2": "auditor", "postgresql": "postgresql", "redis": "redis", "nginx": "nginx",
    }  # fmt: skip
    assert all(mount["read_only"] for mounts in rooms.values() for mount in mounts)


def test_every_secret_that_is_drawn_has_a_settings_name() -> None:
    text = (DOCKER / "make-secrets").read_text("utf-8")
    script = text[text.index("\nTEXT\n") :]
    drawn = set(re.findall(r"\b((?:web|audit-writer|auditor|postgresql|redis|nginx)/[a-z_]+)", script))

    assert {"web/secret_key", "web/database_url", "audit-writer/audit_kek", "redis/requirepass"} <= drawn
    unknown = {path for path in drawn if path.rpartition("/")[2].upper() not in SECRETS}
    assert unknown - NOT_OURS == {"web/models"}


@pytest.mark.parametrize("path", sorted(DOCKER.iterdir()), ids=lambda path: path.name)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    if path.is_file():
        text = path.read_text("utf-8")
        assert not re.search(r"\b[0-9a-f]{32,}\b|\b[A-Za-z0-9+/]{40,}={0,2}\b|PRIVATE KEY", text)
        assert not re.search(r"(?i)(password|secret|api_key|token): +[^/\s$]\S+$", text, flags=re.MULTILINE)


def test_the_image_holds_what_runs_and_nothing_else() -> None:
    """The context is a list of what may enter; whatever is new in the tree stays out of images."""
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]

    assert lines[0] == "*"
    let_in = [line.removeprefix("!") for line in lines[1:] if line.startswith("!")]
    assert all((ROOT / path).exists() for path in let_in), let_in
    assert not any(path.split("/", maxsplit=1)[0] in {"tests", "bench", "instance", ".git", ".env"} for path in let_in)
    for name in ("entrypoint", "healthcheck.py", "secure-llm-proxy"):
        assert f"deploy/docker/{name}" in let_in


def test_the_recipe_ends_with_a_user_that_is_not_root_and_a_health_check_of_its_own() -> None:
    text = (DOCKER / "Dockerfile").read_text("utf-8")
    last = text[text.rindex("\nFROM ") :]

    assert "\nUSER 10001:10001\n" in last
    assert re.search(r'HEALTHCHECK .*\n +CMD \["/opt/secure_llm_proxy/deploy/docker/entrypoint", "health"\]', last)
    assert "--require-hashes" in text
    assert "--only-binary :all:" in text
    environment = dict(re.findall(r"^(?:ENV| {3}) ([A-Z_]+)=(\S+)", last, flags=re.MULTILINE))
    assert {name for name in environment if not name.startswith("PYTHON")} <= SETTINGS | PLACES
    assert environment["LOG_DIR"] == "none"


def test_the_entry_names_its_parts_and_refuses_others() -> None:
    entry = DOCKER / "entrypoint"
    offered = set(re.findall(r"^    ([a-z-]+)\) ?", entry.read_text("utf-8"), flags=re.MULTILINE))

    helped, wrong = (
        subprocess.run(["sh", str(entry), word], capture_output=True, text=True, check=False, timeout=20, cwd="/")
        for word in ("--help", "bash")
    )

    told = set(re.findall(r"^  ([a-z-]+) ", helped.stdout + wrong.stderr, flags=re.MULTILINE))
    assert offered == told
    assert wrong.returncode == 2


def test_the_site_of_two_web_services_names_both_sockets(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        str(DOCKER / "nginx_site.py"),
        "--nginx-version",
        "1.30.0",
        "--directory",
        str(tmp_path),
    ]
    sockets = ["--socket", "/run/a/web.sock", "--socket", "/run/b/web.sock"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}

    done, refused = (
        subprocess.run(
            [*command, "--domain", domain, *sockets],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for domain in ("llm.example.org,chat.example.org", "llm.example.org;")
    )

    site = (tmp_path / "site.conf").read_text("utf-8")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^ +server unix:(\S+)", site, flags=re.MULTILINE) == ["/run/a/web.sock", "/run/b/web.sock"]
    assert "server_name llm.example.org chat.example.org;" in site
    assert "return 308 https://llm.example.org$request_uri;" in site
    assert sorted(path.name for path in tmp_path.iterdir()) == ["http.conf", "nginx.conf", "refusals.conf", "site.conf"]
    assert refused.returncode == 1
    assert "is no host name" in refused.stderr
