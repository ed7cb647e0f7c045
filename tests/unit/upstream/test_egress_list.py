"""What the egress filter publishes is believed for the order of addresses, and for nothing else."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from pathlib import Path

import pytest

from scripts.lib import egress
from scripts.lib.egress import InForce, Memory, Place
from secure_llm_proxy.upstream.destinations import Destinations
from secure_llm_proxy.upstream.egress_list import _BYTES_MAX, EgressList
from secure_llm_proxy.upstream.name_lookup import Address

HOST = "llm.example.com"
DESTINATIONS = Destinations(HOST, plain=False)
OLD, OLDER, NEW, SIX = "93.184.216.34", "93.184.216.33", "93.184.216.35", "2606:2800::34"


def found(*addresses: str) -> list[Address]:
    return [
        (socket.AF_INET6, (text, 443, 0, 0)) if ":" in text else (socket.AF_INET, (text, 443)) for text in addresses
    ]


def published(
    *addresses: str, host: str = HOST, left_s: float | None = 3600.0, age_s: float = 0.0
) -> dict[str, object]:
    now_s = time.monotonic()
    until_s = None if left_s is None else now_s + left_s
    return {
        "format": 1,
        "looked_s": now_s - age_s,
        "places": [{"host": host, "port": 443, "until_s": dict.fromkeys(addresses, until_s)}],
    }


def listing(folder: Path, told: object) -> EgressList:
    file = folder / "let-through.json"
    draft = folder / "draft"
    draft.write_text(told if isinstance(told, str) else json.dumps(told), "utf-8")
    draft.replace(file)
    return EgressList(file, wanted=folder / "wanted")


def ordered(egress_list: EgressList, *addresses: str, destinations: Destinations = DESTINATIONS) -> list[str]:
    return [where[0] for _, where in egress_list.ordered(destinations, 443, found(*addresses))]


def test_without_a_list_our_own_lookup_is_all_there_is(tmp_path: Path) -> None:
    missing = EgressList(tmp_path / "none.json", wanted=tmp_path / "wanted")

    assert ordered(missing, NEW, OLD) == ordered(EgressList(None), NEW, OLD) == [NEW, OLD]
    assert missing.remark(HOST, 443, NEW, errno.ECONNREFUSED) is None
    assert [*tmp_path.iterdir()] == []


def test_addresses_that_are_let_through_come_first_in_the_resolvers_order(tmp_path: Path) -> None:
    egress_list = listing(tmp_path, published(OLDER, OLD, SIX))

    assert ordered(egress_list, NEW, OLD, SIX) == [OLD, SIX, NEW]
    assert ordered(egress_list, OLD) == [OLD]
    assert not (tmp_path / "wanted").exists()


def test_a_name_that_leads_to_new_addresses_only_is_reached_at_those_it_led_to_lately_and_the_filter_is_told(
    tmp_path: Path,
) -> None:
    egress_list = listing(tmp_path, published(OLD, SIX, OLDER))

    order = ordered(egress_list, NEW)

    assert order == [OLD, SIX, OLDER, NEW]
    assert (tmp_path / "wanted").read_bytes() == b""


def test_the_filter_is_told_once_a_second_at_most(tmp_path: Path) -> None:
    egress_list = listing(tmp_path, published(OLD))

    began = time.monotonic()
    ordered(egress_list, NEW)
    (tmp_path / "wanted").unlink()
    ordered(egress_list, NEW)

    assert not (tmp_path / "wanted").exists() or time.monotonic() - began > 0.9


def test_what_it_can_t_be_told_by_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("as it was")
    (tmp_path / "wanted").symlink_to(tmp_path / "elsewhere")
    link = listing(tmp_path, published(OLD))
    nowhere = EgressList(tmp_path / "let-through.json", wanted=tmp_path / "no" / "folder")

    assert ordered(link, NEW) == ordered(nowhere, NEW) == [OLD, NEW]
    assert (tmp_path / "elsewhere").read_text() == "as it was"


def test_what_has_run_out_is_not_let_through_any_more(tmp_path: Path) -> None:
    assert ordered(listing(tmp_path, published(OLD, left_s=-1)), NEW, OLD) == [NEW, OLD]
    assert ordered(listing(tmp_path, published(OLD, left_s=None)), NEW) == [OLD, NEW]


def test_a_list_that_nobody_keeps_up_or_of_another_clock_comes_behind_our_own_lookup(tmp_path: Path) -> None:
    assert ordered(listing(tmp_path, published(OLD, age_s=400)), NEW) == [NEW, OLD]
    assert ordered(listing(tmp_path, published(OLD, age_s=-1e9)), NEW) == [NEW, OLD]


def test_another_name_or_port_has_nothing_of_it(tmp_path: Path) -> None:
    egress_list = listing(tmp_path, published(OLD, host="other.example.com"))

    assert ordered(egress_list, NEW) == [NEW]
    assert not (tmp_path / "wanted").exists()


@pytest.mark.parametrize(
    "listed", ["10.0.0.7", "169.254.169.254", "127.0.0.1", "::1", "fd00:ec2::254", "64:ff9b::a00:7", "fe80::1%eth0"]
)
def test_an_address_that_the_name_may_not_lead_to_is_not_used_because_it_is_listed(tmp_path: Path, listed: str) -> None:
    assert ordered(listing(tmp_path, published(listed)), NEW) == [NEW]


def test_an_ipv4_address_inside_ipv6_is_known_as_what_the_kernel_sends_to(tmp_path: Path) -> None:
    egress_list = listing(tmp_path, published(OLD))

    assert ordered(egress_list, NEW, "::ffff:5db8:d822") == ["::ffff:5db8:d822", NEW]


def test_a_changed_file_counts_at_once_and_a_removed_one_no_more(tmp_path: Path) -> None:
    egress_list = listing(tmp_path, published(OLD))

    first = ordered(egress_list, NEW)
    listing(tmp_path, published(OLDER))
    second = ordered(egress_list, NEW)
    (tmp_path / "let-through.json").unlink()
    third = ordered(egress_list, NEW)

    assert (first, second, third) == ([OLD, NEW], [OLDER, NEW], [NEW])


@pytest.mark.parametrize(
    "told",
    [
        "",
        "{",
        "[" * 100_000,
        "null",
        "[]",
        json.dumps(published(OLD))[:-9],
        json.dumps(published(OLD)) + " " * 262_144,
        "\udcff",
        {**published(OLD), "format": 2},
        {**published(OLD), "looked_s": "now"},
        {**published(OLD), "looked_s": True},
        {**published(OLD), "places": 7},
        {**published(OLD), "places": [{"host": HOST, "port": 443}]},
        {**published(OLD), "places": [{"host": HOST, "port": "443", "until_s": {OLD: None}}]},
        {**published(OLD), "places": [{"host": HOST, "port": 443, "until_s": [OLD]}]},
        {**published(OLD), "places": [{"host": HOST, "port": 443, "until_s": {"localhost": None}}]},
        {**published(OLD), "places": [{"host": HOST, "port": 443, "until_s": {OLD: 10**400}}]},
        {**published(OLD), "places": [{"host": HOST, "port": 443, "until_s": {OLD: "9"}}]},
    ],
    ids=range(18),
)
def test_a_list_that_is_no_list_is_none_and_told_once(
    tmp_path: Path, told: object, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "let-through.json"
    text = told if isinstance(told, str) else json.dumps(told)
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    egress_list = EgressList(file, wanted=tmp_path / "wanted")

    with caplog.at_level(logging.WARNING):
        orders = [ordered(egress_list, NEW) for _ in range(3)]

    assert orders == [[NEW]] * 3
    assert len(caplog.records) == 1
    assert "cause" in caplog.records[0].__dict__


def test_a_list_that_others_could_have_written_is_none(tmp_path: Path) -> None:
    file = tmp_path / "let-through.json"
    of_others = listing(tmp_path, published(OLD))
    file.chmod(0o646)
    writable = ordered(of_others, NEW)
    file.chmod(0o644)
    file.rename(tmp_path / "real.json")
    file.symlink_to(tmp_path / "real.json")
    linked = ordered(EgressList(file), NEW)
    file.unlink()
    os.mkfifo(file)
    piped = ordered(EgressList(file), NEW)
    file.unlink()
    file.mkdir()
    a_folder = ordered(EgressList(file), NEW)

    assert writable == linked == piped == a_folder == [NEW]
    assert ordered(EgressList(tmp_path / "real.json", wanted=tmp_path / "wanted"), NEW) == [OLD, NEW]


def test_no_number_in_it_brings_an_address_back_for_ever(tmp_path: Path) -> None:
    told = json.dumps(published(OLD)).replace('"looked_s": ', '"looked_s": NaN, "was": ')

    assert ordered(listing(tmp_path, told), NEW) == [NEW, OLD]
    assert ordered(
        listing(tmp_path, published(OLD, left_s=float("nan"))),
        NEW,
    ) == [NEW]


def test_a_refusal_of_the_filter_is_told_as_such_and_a_providers_own_is_not(tmp_path: Path) -> None:
    egress_list = listing(tmp_path, published(OLD))
    by_filter = egress_list.remark(HOST, 443, NEW, errno.ECONNREFUSED)
    by_provider = egress_list.remark(HOST, 443, OLD, errno.ECONNREFUSED)
    silence = egress_list.remark(HOST, 443, NEW, errno.ETIMEDOUT)
    here = egress_list.remark("localhost", 443, "127.0.0.1", errno.ECONNREFUSED)
    another_port = egress_list.remark(HOST, 80, OLD, errno.EHOSTUNREACH)
    unkept = listing(tmp_path, published(OLD, age_s=1200)).remark(HOST, 443, NEW, errno.ECONNREFUSED)
    without_list = EgressList(None).remark(HOST, 443, NEW, errno.EPERM)

    assert by_filter is not None
    assert by_filter == another_port
    assert "scripts/egress show" in by_filter
    assert by_provider is silence is here is None
    assert unkept is not None
    assert "20 minutes old" in unkept
    assert without_list is not None
    assert "packet filter" in without_list


def test_what_the_filter_publishes_is_what_the_service_reads(tmp_path: Path) -> None:
    memory = Memory()
    memory.list_anew([Place("web", HOST, 443, "tcp"), Place("audit", HOST, 514, "tcp")], 0.0, 0.0)
    memory.seen[HOST] = egress.Seen({OLDER: 1.0, OLD: 2.0, NEW: 3.0, SIX: 1.5})
    members = {
        ("web_places4", f"{OLD} . tcp . 443"): 80_000,
        ("web_places6", f"{SIX} . tcp . 443"): 80_000,
        ("web_places4", f"{OLDER} . tcp . 443"): 80_000,
        ("audit_places4", f"{NEW} . tcp . 514"): 80_000,
    }

    text = egress.published_text(memory, InForce("", members, {}), time.monotonic(), time.time())
    egress_list = listing(tmp_path, text)

    assert ordered(egress_list, NEW) == [OLD, SIX, OLDER, NEW]
    assert egress.PUBLISHED_BYTES_MAX == _BYTES_MAX
