from __future__ import annotations

import pytest
from hypothesis import given, strategies

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.identity.names import (
    Role,
    checked_email,
    checked_name,
    checked_username,
    normalised_username,
    role_named,
    shown,
)


@pytest.mark.parametrize("written", ["alice", " Alice ", "ALICE", "\uff41\uff4c\uff49\uff43\uff45", "\u00a0aLiCe\t"])
def test_one_name_written_in_several_ways_is_one_name(written: str) -> None:
    assert normalised_username(written) == "alice"


def test_names_that_differ_only_in_composition_or_sharp_s_are_one() -> None:
    assert normalised_username("José") == normalised_username("Jose\u0301")
    assert normalised_username("Strauß") == normalised_username("STRAUSS")


@given(strategies.text(max_size=40))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    once = normalised_username(text)

    assert normalised_username(once) == once


@pytest.mark.parametrize(
    "username", ["a", "alice", "jörg.müller", "build-bot_2", "o+tag@example.org", "李小龙", "x" * 64]
)
def test_ordinary_names_are_taken_as_typed(username: str) -> None:
    assert checked_username(f" {username} ") == (username, normalised_username(username))


@pytest.mark.parametrize(
    "username",
    [
        "",
        " ",
        "x" * 65,
        "-rf",
        ".hidden",
        "@all",
        "two words",
        "a\nb",
        "a\x1b[31m",
        "a\u200bb",
        "a\u202eb",
        "a/b",
        "a'b",
        "ﷺ" * 10,
    ],
)
def test_names_that_could_mislead_or_break_are_refused(username: str) -> None:
    with pytest.raises(OperatorError, match="username"):
        checked_username(username)


@pytest.mark.parametrize("email", ["a@b", "admin@localhost", "first.last+tag@mail.example.co.uk", "x@münchen.de"])
def test_addresses_that_could_receive_mail_are_taken(email: str) -> None:
    assert checked_email(f" {email}\n") == email


@pytest.mark.parametrize(
    "email",
    [
        "",
        "a",
        "a@",
        "@b",
        "a b@c",
        "a@b c",
        "a@@b",
        "a@b..c",
        "a@-b",
        "a@b-",
        "a@b\x00",
        "a@b,c@d",
        "<a@b>",
        "a@" + "b" * 300,
        "a" * 65 + "@b",
    ],
)
def test_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(OperatorError, match="e-mail"):
        checked_email(email)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\x1b[2J"])
def test_a_name_of_a_key_is_short_and_printable(name: str) -> None:
    with pytest.raises(OperatorError, match="name"):
        checked_name(name)


def test_roles_of_the_origin_mean_ours() -> None:
    assert role_named("user") is Role.MEMBER
    assert role_named("ReadOnly") is Role.VIEWER
    assert [role_named(role) for role in Role] == list(Role)


def test_an_unknown_role_is_refused_with_those_that_exist() -> None:
    with pytest.raises(OperatorError, match="owner, admin, operator, auditor, viewer, member"):
        role_named("root")


@given(strategies.text(max_size=300))
def test_what_an_error_shows_of_an_input_stays_on_one_printable_line(text: str) -> None:
    assert shown(text).isprintable()
