"""Commands about address rules, as an operator types them."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.installation import Installation, installation_in


@pytest.fixture(scope="module")
def host(short_folder: Path) -> Iterator[Installation]:
    with installation_in(short_folder / "cli-rules", ALLOWED_IPS="10.0.0.0/8") as installation:
        yield installation


def rule_for(host: Installation, network: str) -> dict[str, object]:
    (found,) = [rule for rule in host.listed("address-rules", "list") if rule["network"] == network]
    return found


def test_a_rule_is_added_listed_and_removed_and_each_change_is_recorded_before_it_is_made(host: Installation) -> None:
    made = host.told(
        "address-rules", "add", "--list", "blocked", "::ffff:198.51.100.0/120", "--note", "scanner", "--expires", "24"
    )
    listed = host.run("address-rules", "list", "--list", "blocked")
    removed = host.run("address-rules", "remove", "198.51.100.0/24", "--list", "blocked", "--yes")

    assert (made["network"], made["list"], made["note"]) == ("198.51.100.0/24", "blocked", "scanner")
    assert (made["source"], made["created_by"]) == ("operator", f"host:{getpass.getuser()}")
    end = datetime.fromisoformat(str(made["expires_at"]))
    assert timedelta(hours=23) < end - datetime.now(UTC) <= timedelta(hours=24)
    header, line = (row for row in listed.output.splitlines() if row.startswith(("LIST", "blocked  198.51.100.0/24")))
    assert header.split() == ["LIST", "NETWORK", "SOURCE", "NOTE", "BY", "MADE", "EXPIRES", "ID"]
    assert str(made["id"]) in line
    assert (removed.code, removed.output) == (
        0,
        "198.51.100.0/24 is no longer blocked by a rule, everywhere within 5 s.\n",
    )
    for action in ("address_rule.add", "address_rule.remove"):
        intent, result = host.recorded(action, made["id"])
        assert (intent[0]["ty"], result[0]["ty"], result[0]["ok"]) == ("admin.intent", "admin.result", True)
        assert intent[0]["list"] == "blocked"
        assert intent[1] == {"network": "198.51.100.0/24", "note": "scanner"}
        assert "198.51.100" not in str(intent[0])


def test_the_same_network_twice_is_a_conflict_that_names_the_rule(host: Installation) -> None:
    made = host.told("address-rules", "add", "--list", "blocked", "203.0.113.7")

    again = host.run("address-rules", "add", "--list", "blocked", "203.0.113.7/32")

    assert again.code == 1
    assert again.errors.startswith(
        f"Error: 203.0.113.7/32 is in the list blocked already by {made['id']}, made by host:"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--list", "blocked", "10.0.0.1/8"), 1, "write 10.0.0.0/8 for it, 10.0.0.1 for one address"),
        (("--list", "blocked", "0.0.0.0/0"), 1, "would lock out every client with an IPv4 address"),
        (("--list", "blocked", "nonsense"), 1, "is not an IP address or CIDR network"),
        (("--list", "sideways", "10.0.0.0/8"), 2, "is not one of 'blocked', 'allowed'"),
        (("10.0.0.0/8",), 2, "Missing option '--list'"),
        (("--list", "blocked", "10.0.0.0/8", "--expires", "0"), 2, "Invalid value for '--expires'"),
        (("--list", "blocked", "10.0.0.0/8", "--expires", "nan"), 2, "Invalid value for '--expires'"),
        (("--list", "blocked", "10.0.0.0/8", "--note", "two\nlines"), 1, "one line"),
    ],
)
def test_what_can_t_be_a_rule_is_refused_with_the_reason(
    host: Installation, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = host.listed("address-rules", "list")

    ended = host.run("address-rules", "add", *arguments)

    assert ended.code == code
    assert words in ended.errors
    assert host.listed("address-rules", "list") == before


def test_everybody_is_blocked_by_force_and_let_in_again(host: Installation) -> None:
    made = host.told("address-rules", "add", "--list", "blocked", "0.0.0.0/0", "--force")

    ended = host.run("address-rules", "remove", str(made["id"]), "--yes")

    assert ended.code == 0


def test_removal_asks_and_nothing_happens_without_a_yes(host: Installation) -> None:
    made = host.told("address-rules", "add", "--list", "allowed", "192.0.2.0/24")

    no = host.run("address-rules", "remove", "192.0.2.0/24", stdin="n\n")
    nobody = host.run("address-rules", "remove", "192.0.2.0/24")
    kept = rule_for(host, "192.0.2.0/24")
    yes = host.run("address-rules", "remove", "192.0.2.0/24", stdin="y\n")
    gone = host.run("address-rules", "remove", "192.0.2.0/24", "--yes")

    assert (no.code, nobody.code, yes.code, gone.code) == (1, 1, 0, 1)
    assert "Remove 192.0.2.0/24 from the list allowed?" in no.errors
    assert "Nothing was changed" in no.errors
    assert kept["id"] == made["id"]
    assert "There is no address rule '192.0.2.0/24'" in gone.errors


def test_a_network_in_both_lists_needs_the_list_s_name(host: Installation) -> None:
    for which in ("blocked", "allowed"):
        host.told("address-rules", "add", "--list", which, "10.77.0.0/16")

    ambiguous = host.run("address-rules", "remove", "10.77.0.0/16", "--yes")
    named = host.run("address-rules", "remove", "10.77.0.0/16", "--list", "allowed", "--yes")

    assert ambiguous.code == 1
    assert "stands in both lists" in ambiguous.errors
    assert named.code == 0
    assert rule_for(host, "10.77.0.0/16")["list"] == "blocked"


def test_where_everybody_may_ask_the_first_allowing_rule_and_the_last_one_s_end_are_asked_about(
    short_folder: Path,
) -> None:
    with installation_in(short_folder / "cli-open-rules") as host:
        no = host.run("address-rules", "add", "--list", "allowed", "10.0.0.0/8", stdin="n\n")
        ends = host.run("address-rules", "add", "--list", "allowed", "10.0.0.0/8", "--expires", "1", "--yes")
        nothing = host.run("address-rules", "list")
        host.told("address-rules", "add", "--list", "allowed", "10.0.0.0/8", "--yes")
        second = host.run("address-rules", "add", "--list", "allowed", "192.0.2.1")
        not_the_last = host.run("address-rules", "remove", "192.0.2.1", stdin="y\n")
        last = host.run("address-rules", "remove", "10.0.0.0/8", stdin="y\n")

    assert (no.code, ends.code, second.code, not_the_last.code, last.code) == (1, 1, 0, 0, 0)
    assert "from now on only 10.0.0.0/8 may" in no.errors
    assert "open the door to everybody" in ends.errors
    assert nothing.output == "There are no address rules; the lists of the settings are in force.\n"
    assert "the last one" not in not_the_last.errors
    assert "the last one, after which everybody may ask" in last.errors
