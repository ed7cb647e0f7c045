"""Commands packed in pieces are what hiredis packs whole."""

from __future__ import annotations

from collections.abc import Sequence

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from secure_llm_proxy.throttling.resp import Script, bulk, packed

_word = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers())


def packed_by_hiredis(words: Sequence[str | int]) -> bytes:
    content: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its stub means any number of words
    return content


@given(st.lists(_word, min_size=1, max_size=20))
def test_a_packed_command_is_the_one_that_hiredis_packs(words: list[str | int]) -> None:
    assert packed(*words) == packed_by_hiredis(words)


@given(st.lists(_word, max_size=8), st.lists(_word, max_size=8))
def test_a_call_names_the_script_by_its_hash_and_when_spelt_out_by_its_text(
    keys: list[str | int], arguments: list[str | int]
) -> None:
    text = "return {KEYS[1], ARGV[1]} -- ä"
    script = Script(text)

    call = script.call(map(str, keys), arguments)

    hashed = call.split(b"\r\n")[4].decode()
    assert len(hashed) == 40
    words = (len(keys), *map(str, keys), *arguments)
    assert call == packed_by_hiredis(["EVALSHA", hashed, *words])
    assert script.spelt_out(call) == packed_by_hiredis(["EVAL", text, *words])


def test_a_client_that_writes_a_scripts_name_into_its_own_words_changes_no_script() -> None:
    script = Script("return 1")
    name = script.opening(keys=0, arguments=1).decode()

    spelt_out = script.spelt_out(script.call([], [name]))

    assert spelt_out.endswith(bulk(name))
    assert spelt_out.count(b"EVALSHA") == 1


def test_an_identifier_that_is_not_utf_8_is_sent_as_it_came() -> None:
    assert bulk(b"exc_\xff".decode("utf-8", "surrogateescape")) == b"$5\r\nexc_\xff\r\n"
