"""scripts/lib/egress.py where no kernel is needed: lists, names, what is remembered, and what nft is told.

What the rules do to packets is shown on a real host, by tests/host/test_egress.py.
"""

from __future__ import annotations

import json
import os
import re
import stat
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest

from scripts.lib import egress
from scripts.lib.egress import EgressError, Element, Ground, InForce, Memory, Place
from secure_llm_proxy.upstream.destinations import _V4, _V6, Reach

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000.0
HOUR = 3600.0
NAMED = Place("web", "llm.example", 443, "tcp")
STATED = Place("web", "169.254.7.7", 8080, "tcp")
SYSLOG = Place("audit", "fd00::5", 514, "udp")


def listed(**changes: object) -> str:
    row: dict[str, object] = {
        "host": "llm.example",
        "port": 443,
        "protocol": "tcp",
        "by": "web",
        "providers": ["x"],
        "for": ["provider"],
        "sources": ["database"],
    }
    return json.dumps([{**row, **changes}])


def knowing(*addresses: str, at: float = NOW) -> Memory:
    memory = Memory()
    memory.list_anew([NAMED], at, at)
    memory.seen["llm.example"] = egress.Seen()
    memory.seen["llm.example"].learn([ip_address(text) for text in addresses], at)
    return memory


def keys(memory: Memory, now: float) -> set[tuple[str, int]]:
    return {(element.key.partition(" ")[0], element.timeout_s) for element in memory.elements(now)}


def test_the_products_own_list_is_understood() -> None:
    assert egress.read_places(listed()) == [NAMED]
    assert egress.read_places("[]") == []
    assert egress.read_places(listed(), stored_providers=False) == []
    assert egress.read_places(listed(sources=["database", "environment"]), stored_providers=False) == [NAMED]


def test_database_and_redis_are_for_the_commands_that_run_as_the_writers_user_too() -> None:
    places = egress.read_places(listed(host="db.example", port=5432, **{"for": ["database"]}))

    assert [(place.by, str(place)) for place in places] == [("audit", "db.example:5432"), ("web", "db.example:5432")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        listed()[:-2],
        "{}[]",
        "3",
        listed(host=""),
        listed(host="a; flush ruleset"),
        listed(host="a}b"),
        listed(host=None),
        listed(port=0),
        listed(port="443"),
        listed(port=65536),
        listed(protocol="tcp }"),
        listed(by="root"),
        '[{"host": "x.example"}]',
    ],
)
def test_a_list_that_is_broken_off_or_holds_what_nft_could_misread_is_refused(text: str) -> None:
    with pytest.raises(EgressError):
        egress.read_places(text)


def test_resolvers_are_read_as_the_c_library_reads_them() -> None:
    text = "# nameserver 192.0.2.1\nsearch a\nnameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver\nnameserver 10.0.0.53\n"

    assert [str(address) for address in egress.read_resolvers(text)] == ["10.0.0.53", "fe80::1"]
    assert [str(address) for address in egress.read_resolvers("")] == ["127.0.0.1"]


def test_an_address_stays_for_a_day_after_the_last_answer_that_held_it() -> None:
    memory = knowing("192.0.2.1")
    seen = memory.seen["llm.example"]

    seen.learn([ip_address("192.0.2.2")], NOW + 23 * HOUR)
    both = keys(memory, NOW + 23 * HOUR)
    seen.learn([ip_address("192.0.2.2")], NOW + 25 * HOUR)

    assert both == {("192.0.2.1", egress.KEEP_S), ("192.0.2.2", egress.KEEP_S)}
    assert keys(memory, NOW + 25 * HOUR) == {("192.0.2.2", egress.KEEP_S)}


def test_a_name_without_an_answer_keeps_what_it_had_however_long() -> None:
    memory = knowing("192.0.2.1", "2001:db8::1")

    memory.forget(NOW + 1000 * HOUR)

    assert keys(memory, NOW + 1000 * HOUR) == {("192.0.2.1", egress.KEEP_S), ("2001:db8::1", egress.KEEP_S)}


def test_a_clock_that_was_wrong_keeps_nothing_for_ever() -> None:
    memory = knowing("192.0.2.1", at=NOW + 10_000 * HOUR)

    memory.seen["llm.example"].learn([ip_address("192.0.2.2")], NOW)
    memory.seen["llm.example"].learn([ip_address("192.0.2.2")], NOW + 25 * HOUR)

    assert keys(memory, NOW + 25 * HOUR) == {("192.0.2.2", egress.KEEP_S)}


def test_what_left_the_list_stays_for_a_quarter_of_an_hour_and_no_longer() -> None:
    memory = knowing("192.0.2.1")

    memory.list_anew([], NOW, NOW)
    at_once = keys(memory, NOW)
    memory.forget(NOW + 600)
    later = keys(memory, NOW + 600)
    memory.forget(NOW + 901)

    assert at_once == {("192.0.2.1", 900)}
    assert later == {("192.0.2.1", 300)}
    assert memory.elements(NOW + 901) == []
    assert memory.seen == {}


def test_what_comes_back_to_the_list_is_there_as_before() -> None:
    memory = knowing("192.0.2.1")

    memory.list_anew([], NOW, NOW)
    memory.list_anew([NAMED], NOW + 60, NOW + 60)
    memory.forget(NOW + 2000)

    assert keys(memory, NOW + 2000) == {("192.0.2.1", egress.KEEP_S)}


def test_two_names_at_one_address_keep_it_for_the_longer_time() -> None:
    memory = knowing("192.0.2.1")
    other = Place("web", "other.example", 443, "tcp")
    memory.list_anew([NAMED, other], NOW, NOW)
    memory.seen["other.example"] = egress.Seen({"192.0.2.1": NOW}, NOW)

    memory.list_anew([NAMED], NOW, NOW)

    assert keys(memory, NOW) == {("192.0.2.1", egress.KEEP_S)}


def test_addresses_that_stand_in_a_url_are_let_through_for_good_whatever_they_are() -> None:
    memory = Memory()
    memory.list_anew([STATED, SYSLOG, Place("web", "::ffff:10.0.0.7", 80, "tcp")], NOW, NOW)

    assert memory.elements(NOW) == [
        Element("audit_places6", "fd00::5 . udp . 514"),
        Element("web_stated4", "10.0.0.7 . tcp . 80"),
        Element("web_stated4", "169.254.7.7 . tcp . 8080"),
    ]


def test_names_that_lead_nowhere_are_told_and_the_others_are_learnt() -> None:
    memory = Memory()
    memory.list_anew([NAMED, Place("web", "localhost", 11434, "tcp")], NOW, NOW)

    odd = egress.learn_addresses(memory, memory.fresh_names(), NOW)

    assert "127.0.0.1" in memory.seen["localhost"].addresses
    assert memory.fresh_names() == ["llm.example"]
    assert memory.seen["llm.example"].addresses == {}
    [sentence] = odd
    assert sentence.startswith("llm.example can't be looked up")


def test_memory_survives_a_run_and_a_broken_file_is_no_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = knowing("192.0.2.1")
    memory.list_anew([STATED], NOW, NOW)
    path = tmp_path / "memory.json"

    memory.write(path)
    again = Memory.read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")
    broken = Memory.read(path)

    assert again == memory
    assert mode == 0o600
    assert broken == Memory()
    assert "learnt anew" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["memory.json"]


def test_the_same_text_has_the_same_mark_and_another_resolver_another() -> None:
    def mark(resolver: str, *, uid: int = 997, speaks: bool = False) -> str:
        return egress.rules_mark(egress.table_text(uid, 996, [ip_address(resolver)], audit_speaks=speaks))

    marks = [mark("10.0.0.53"), mark("10.0.0.54"), mark("10.0.0.53", uid=998), mark("10.0.0.53", speaks=True)]

    assert re.fullmatch(r"rules [0-9a-f]{16}", marks[0])
    assert mark("10.0.0.53") == marks[0]
    assert len(set(marks)) == 4


def test_the_audit_writers_user_is_let_nowhere_outside_unless_settings_name_it() -> None:
    silent = egress.table_text(997, 996, [ip_address("10.0.0.53")], audit_speaks=False)
    speaking = egress.table_text(997, 996, [ip_address("10.0.0.53")], audit_speaks=True)

    def audit(text: str) -> str:
        return text.partition("chain audit {")[2].partition("\n    }")[0]

    assert audit(silent).split("\n")[1:] == [
        '        oif "lo" fib daddr type local counter name loopback accept',
        "        counter name audit_refused goto refused",
    ]
    assert "@audit_places4" in audit(speaking)
    assert "meta skuid 996" in silent
    assert "goto audit" not in egress.table_text(997, None, [], audit_speaks=False)


def test_addresses_that_no_name_may_lead_to_are_refused_before_places_and_behind_stated_ones() -> None:
    web = egress.table_text(997, 996, [], audit_speaks=False).partition("chain web {")[2].partition("}\n")[0]
    order = [web.index(name) for name in ("@resolvers4", "@web_stated4", "@never4", "@web_places4")]

    assert order == sorted(order)


def test_every_change_is_one_transaction_that_touches_our_table_alone() -> None:
    elements = [Element("web_places4", "192.0.2.1 . tcp . 443", 60), Element("web_stated4", "10.0.0.7 . tcp . 80")]
    table = egress.table_text(997, 996, [], audit_speaks=False)

    whole, exchange = egress.whole_text(table, elements), egress.exchange_text(elements)

    assert whole.startswith("table inet slp_egress\ndelete table inet slp_egress\ntable inet slp_egress {\n")
    assert exchange.splitlines()[-2:] == [
        "add element inet slp_egress web_places4 { 192.0.2.1 . tcp . 443 timeout 60s }",
        "add element inet slp_egress web_stated4 { 10.0.0.7 . tcp . 80 }",
    ]
    assert all("inet slp_egress" in line for line in exchange.splitlines())
    assert "flush ruleset" not in whole + exchange


def listing(mark: str, *entries: object) -> str:
    """What `nft -j list table` prints."""
    rows = [
        {"counter": {"name": "refused", "comment": mark, "packets": 7, "bytes": 420}},
        {"set": {"name": "web_places4", "elem": list(entries)}},
        {"set": {"name": "lately4", "elem": [{"elem": {"val": {"concat": ["192.0.2.9", "tcp", 25]}, "expires": 5}}]}},
        {"set": {"name": "never4", "elem": [{"prefix": {"addr": "169.254.0.0", "len": 16}}, "192.0.0.192"]}},
    ]
    return json.dumps({"nftables": rows})


@pytest.mark.parametrize(
    ("protocol", "left_s", "enough"), [(6, 80_000, True), ("tcp", 80_000, True), (6, 40_000, False), (6, None, False)]
)
def test_a_table_that_is_as_it_should_be_is_known_and_one_that_runs_out_is_not(
    protocol: object, left_s: int | None, *, enough: bool
) -> None:
    table = egress.table_text(997, 996, [], audit_speaks=False)
    wanted = [Element("web_places4", "192.0.2.1 . tcp . 443", egress.KEEP_S)]
    value = {"concat": ["192.0.2.1", protocol, 443]}
    entry = value if left_s is None else {"elem": {"val": value, "timeout": egress.KEEP_S, "expires": left_s}}

    in_force = egress.read_in_force(listing(egress.rules_mark(table), entry))

    assert in_force.holds(table, wanted) is enough
    assert not in_force.holds(table, [])
    assert not in_force.holds(egress.table_text(1, 996, [], audit_speaks=False), wanted)
    assert in_force.counters == {"refused": 7}


def test_what_leaves_is_armed_down_and_not_up() -> None:
    table = egress.table_text(997, 996, [], audit_speaks=False)
    leaving = [Element("web_places4", "192.0.2.1 . tcp . 443", 600)]
    where = ("web_places4", "192.0.2.1 . tcp . 443")
    mark = egress.rules_mark(table)

    assert InForce(mark, {where: 590}, {}).holds(table, leaving)
    assert not InForce(mark, {where: 80_000}, {}).holds(table, leaving)
    assert not InForce(mark, {where: None}, {}).holds(table, leaving)


def test_the_filter_and_the_web_unit_refuse_what_no_name_may_lead_to() -> None:
    never = {str(network) for network, reach in (*_V4, *_V6) if reach is Reach.NEVER}
    unit = (ROOT / "deploy/systemd/secure_llm_proxy.service").read_text("utf-8")
    denied = {
        str(ip_network(word))
        for line in re.findall(r"^IPAddressDeny=(.*)$", unit, re.MULTILINE)
        for word in line.split()
    }

    assert {str(ip_network(text)) for text in egress.NEVER} == never
    assert denied == never


def test_a_link_local_resolver_is_allowed_back_into_the_web_unit() -> None:
    text = egress.drop_in_text([ip_address("169.254.169.253"), IPv6Address("fe80::1")], Path("/x/ruleset.nft"))

    assert "IPAddressAllow=169.254.169.253 fe80::1\n" in text
    assert "IPAddressAllow" not in egress.drop_in_text([], Path("/x/ruleset.nft"))


def test_of_a_name_that_leads_to_very_many_addresses_the_newest_are_kept() -> None:
    memory = knowing("192.0.2.1")
    many = [ip_address(f"10.{number >> 8}.{number & 255}.1") for number in range(4000)]

    memory.seen["llm.example"].learn(many, NOW + 60)
    memory.seen["llm.example"].learn([ip_address("192.0.2.2")], NOW + 120)

    addresses = memory.seen["llm.example"].newest()
    assert len(addresses) == len(memory.elements(NOW + 120)) == egress.ADDRESSES_MAX
    assert addresses[0] == "192.0.2.2"
    assert "192.0.2.1" not in addresses


def ground(folder: Path) -> Ground:
    names = {"SLP_EGRESS_STATE": "state", "SLP_UNITS": "units", "SLP_EGRESS_RUNTIME": "run"}
    return Ground.of({name: str(folder / part) for name, part in names.items()})


def in_force(memory: Memory, *addresses: str) -> InForce:
    """A kernel that has these and no others."""
    return InForce(
        "",
        {
            (element.set_name, element.key): element.timeout_s or None
            for element in memory.elements(NOW)
            if element.key.partition(" ")[0] in addresses
        },
        {},
    )


def test_what_the_kernel_has_and_nothing_else_is_published_for_everybody_to_read_and_root_to_write(
    tmp_path: Path,
) -> None:
    memory = knowing("192.0.2.1", "192.0.2.2")
    memory.list_anew([NAMED, STATED, SYSLOG], NOW, NOW)
    here = ground(tmp_path)

    umask = os.umask(0o077)
    try:
        odd = egress.publish(here, memory, in_force(memory, "192.0.2.2", "169.254.7.7", "fd00::5"), 1000.9)
    finally:
        os.umask(umask)

    assert odd == []
    told = json.loads(here.published.read_text("utf-8"))
    assert told.pop("looked_at") > 0
    assert told == {
        "format": 1,
        "looked_s": 1000,
        "places": [
            {"host": "169.254.7.7", "port": 8080, "until_s": {"169.254.7.7": None}},
            {"host": "llm.example", "port": 443, "until_s": {"192.0.2.2": 1000 + egress.KEEP_S}},
        ],
    }
    assert [stat.S_IMODE(path.stat().st_mode) for path in (here.runtime, here.published)] == [0o755, 0o644]
    assert [*here.runtime.iterdir()] == [here.published]


def test_what_is_published_takes_the_place_of_whatever_stood_there(tmp_path: Path) -> None:
    memory, here = knowing("192.0.2.1"), ground(tmp_path)
    here.runtime.mkdir()
    (tmp_path / "elsewhere").write_text("as it was")
    here.published.symlink_to(tmp_path / "elsewhere")
    here.published.with_name(f".{here.published.name}.{os.getpid()}.new").write_text("half of" * 10_000)

    odd = egress.publish(here, memory, in_force(memory, "192.0.2.1"), 1000.0)

    assert odd == []
    assert "192.0.2.1" in here.published.read_text("utf-8")
    assert not here.published.is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "as it was"


def test_a_filter_that_can_t_publish_says_so_and_goes_on(tmp_path: Path) -> None:
    memory, here = knowing("192.0.2.1"), ground(tmp_path)
    here.published.mkdir(parents=True)

    [odd] = egress.publish(here, memory, in_force(memory), 1000.0)

    assert str(here.published) in odd
    assert "own lookups" in odd


def test_where_many_names_lead_to_very_many_addresses_the_newest_of_each_are_published(tmp_path: Path) -> None:
    memory = Memory()
    memory.list_anew([Place("web", f"n{number}.example", 443, "tcp") for number in range(24)], NOW, NOW)
    for name in memory.names():
        memory.seen[name] = egress.Seen()
        memory.seen[name].learn([ip_address(f"2606:2800:aaaa:bbbb:cccc:dddd:1111:{n:x}") for n in range(2, 258)], NOW)
        memory.seen[name].learn([ip_address("2606:2800::1")], NOW + 1)
    held = InForce("", {(each.set_name, each.key): egress.KEEP_S for each in memory.elements(NOW)}, {})

    text = egress.published_text(memory, held, 1000.0, NOW)

    assert len(text) <= egress.PUBLISHED_BYTES_MAX
    rows = json.loads(text)["places"]
    assert {next(iter(row["until_s"])) for row in rows} == {"2606:2800::1"}
    assert {len(row["until_s"]) for row in rows} == {64}


@pytest.mark.parametrize("jump_s", [30 * 24 * HOUR, -30 * 24 * HOUR])
def test_a_clock_that_is_set_takes_no_address_away_and_keeps_none_for_longer(tmp_path: Path, jump_s: float) -> None:
    memory, here = knowing("192.0.2.1"), ground(tmp_path)
    memory.list_anew([NAMED, Place("web", "gone.example", 443, "tcp")], NOW, NOW)
    memory.list_anew([NAMED], NOW, NOW)
    here.runtime.mkdir()
    here.published.write_text(egress.published_text(memory, in_force(memory), 1000.0, NOW))
    later = NOW + jump_s + HOUR

    found = egress.clock_jump_s(here.published, NOW - 25, later, 1000.0 + HOUR)
    memory.follow_clock(found)
    memory.seen["llm.example"].learn([ip_address("192.0.2.2")], later)
    soon = keys(memory, later)
    memory.seen["llm.example"].learn([ip_address("192.0.2.2")], later + 24 * HOUR)
    memory.forget(later)

    assert found == jump_s
    assert {address for address, _ in soon} == {"192.0.2.1", "192.0.2.2"}
    assert {address for address, _ in keys(memory, later + 24 * HOUR)} == {"192.0.2.2"}
    assert memory.leaving == {}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"looked_at": "x", "looked_s": 1}', "\udcff"])
def test_without_a_published_list_of_this_boot_nothing_is_known_of_the_clock(tmp_path: Path, text: str) -> None:
    file = tmp_path / "let-through.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))

    assert egress.clock_jump_s(file, NOW, NOW, 5.0) == egress.clock_jump_s(tmp_path / "none", NOW, NOW, 5.0) == 0.0


def test_a_list_that_was_published_at_boot_tells_nothing_of_what_was_seen_before(tmp_path: Path) -> None:
    memory, file = knowing("192.0.2.1"), tmp_path / "let-through.json"
    boot_by_a_wrong_clock = NOW + 1000 * HOUR
    file.write_text(egress.published_text(memory, in_force(memory), 9.0, boot_by_a_wrong_clock))

    assert egress.clock_jump_s(file, NOW - 60, NOW, 24.0) == 0.0


def test_a_journal_line_names_some_of_very_many_addresses() -> None:
    words = egress._few((f"10.0.0.{number}" for number in range(200)), most=3)

    assert words == "10.0.0.0 10.0.0.1 10.0.0.2 and 197 more"
    assert egress._few(["10.0.0.1"]) == "10.0.0.1"


def test_more_names_than_threads_are_all_looked_up() -> None:
    names = [f"127.0.0.{number}" for number in range(1, 250)]

    answers = egress.look_up(names)

    assert len(names) > egress.LOOKUPS_MAX
    assert answers == {name: [ip_address(name)] for name in names}
