"""What the settings name outside the process, for the firewall."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from secure_llm_proxy.cli.outside_places import OutsidePlace, named_places
from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import AuditSettings, DatabaseSettings, RedisSettings, Settings, TelemetrySettings
from secure_llm_proxy.settings.database_url import normalise_database_url


def shown(settings: Settings) -> list[str]:
    return [f"{place} {place.by} {purpose}" for place, purpose in named_places(settings)]


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("sqlite:////var/lib/x/app.db", []),
        ("postgresql:///slp?host=/run/postgresql", []),
        ("postgresql://u:p%40@/slp?host=%2Frun%2Fpostgresql", []),
        ("postgres://u:p@DB.corp.example/slp?ssl=true", ["db.corp.example:5432"]),
        ("postgresql+asyncpg://u:p@db.corp.example:5433/slp", ["db.corp.example:5433"]),
        ("postgresql://u:p@[fd00::1]/slp", ["[fd00::1]:5432"]),
        ("postgresql://u@/slp?host=a.example:1&host=b.example:2", ["a.example:1", "b.example:2"]),
        ("postgresql://u@/slp?host=a.example,b.example&port=1,2", ["a.example:1", "b.example:2"]),
        ("postgresql://u@/slp?host=a.example,b.example&port=6432", ["a.example:6432", "b.example:6432"]),
        ("postgresql://u@/slp?host=%5Bfd00::2%5D:77&host=fd00::3", ["[fd00::2]:77", "[fd00::3]:5432"]),
        ("postgresql://u@name.example/slp?hostaddr=10.0.0.1", ["10.0.0.1:5432"]),
    ],
)
def test_every_host_of_a_database_url_is_a_place_and_a_unix_socket_is_none(url: str, places: list[str]) -> None:
    settings = Settings(database=DatabaseSettings(url=SecretStr(normalise_database_url(url))))

    assert shown(settings) == [f"{place} web database" for place in places]


def test_redis_error_reports_and_the_audit_logs_syslog_are_places() -> None:
    settings = Settings(
        redis=RedisSettings(url=SecretStr("rediss://redis.example/0"), password=SecretStr("x")),
        telemetry=TelemetrySettings(sentry_dsn=SecretStr("https://key@reports.example/4")),
        audit=AuditSettings(sink="syslog:tcp://siem.example:6514", anchor_syslog="udp://[fd00::5]:514"),
    )

    assert shown(settings) == [
        "redis.example:6379 web redis",
        "reports.example:443 web error reports",
        "siem.example:6514 audit audit sink",
        "[fd00::5]:514/udp audit audit anchors",
    ]


def test_what_stays_on_the_host_is_no_place() -> None:
    settings = Settings(
        redis=RedisSettings(url=SecretStr("unix:///run/redis.sock")),
        audit=AuditSettings(sink="file:/mnt/second/log", anchor_syslog="/dev/log"),
    )

    assert shown(settings) == []


@pytest.mark.parametrize(
    "settings",
    [
        Settings(telemetry=TelemetrySettings(sentry_dsn=SecretStr("https://se:cret@reports.example:port/4"))),
        Settings(database=DatabaseSettings(url=SecretStr("postgresql+psycopg2://u:secret@/x?host=a&port=none"))),
        Settings(database=DatabaseSettings(url=SecretStr("postgresql+psycopg2://u:secret@/x?host=a,b,c&port=1,2"))),
    ],
)
def test_what_can_t_be_read_is_told_without_the_secret_in_it(settings: Settings) -> None:
    with pytest.raises(OperatorError) as told:
        list(named_places(settings))

    assert "cret" not in str(told.value)


def test_places_sort_and_show_themselves() -> None:
    places = [
        OutsidePlace("b.example", 443),
        OutsidePlace("a.example", 514, "udp", "audit"),
        OutsidePlace("fd00::1", 1),
    ]

    assert [str(place) for place in sorted(places)] == ["a.example:514/udp", "b.example:443", "[fd00::1]:1"]
