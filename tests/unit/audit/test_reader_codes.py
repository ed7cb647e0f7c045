"""Readers' codes: good once, five tries, and an hour's count that survives everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pyotp
import pytest

from secure_llm_proxy.audit.keystore import KEYS_NAME, KeyStore, KeyStoreUnavailable
from secure_llm_proxy.audit.reader_codes import CLOSED_S, ReaderCodes, Verdict, new_reader_seed, reader_uri
from secure_llm_proxy.audit.seal import KeyRing
from secure_llm_proxy.foundation.errors import ConflictError, NotFoundError, OperatorError
from tests.support.audit_log import KEK

SEED = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
START_S = 1_800_000_000


class Watch:
    def __init__(self) -> None:
        self.s = float(START_S)

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def codes(tmp_path: Path, watch: Watch) -> Iterator[ReaderCodes]:
    ring = KeyRing.from_texts(KEK)
    with closing(KeyStore.open(tmp_path, ring)), closing(opened(tmp_path, watch)) as made:
        yield made


def opened(directory: Path, watch: Watch) -> ReaderCodes:
    return ReaderCodes(KeyStore(directory / KEYS_NAME, KeyRing.from_texts(KEK), read_only=False), watch)


def code_at(moment_s: float, seed: str = SEED) -> str:
    return pyotp.TOTP(seed).at(int(moment_s))


def enrolled(codes: ReaderCodes, watch: Watch, name: str = "ada") -> None:
    """A reader whose enrolment's code is a while ago."""
    codes.enrol(name, SEED, code_at(watch.s))
    watch.s += 300


def wrong_at(watch: Watch) -> str:
    right = {code_at(watch.s), code_at(watch.s - 30)}
    return next(code for code in ("000000", "111111", "222222") if code not in right)


def test_a_code_is_right_once_whatever_dress_it_wears(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)
    code = code_at(watch.s)

    dressed = [codes.check("ada", text) for text in (f" {code}", f"{code} ", f"{code}\n", code[:3] + " " + code[3:])]
    first, second = codes.check("ada", code), codes.check("ada", code)

    assert dressed == [Verdict.WRONG] * 4
    assert (first, second) == (Verdict.RIGHT, Verdict.WRONG)


def test_digits_of_other_scripts_are_no_digits(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)
    code = code_at(watch.s)

    assert codes.check("ada", "".join(chr(0x0660 + int(digit)) for digit in code)) is Verdict.WRONG
    assert codes.check("ada", code) is Verdict.RIGHT


def test_the_code_of_the_step_before_is_right_and_of_no_other(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)

    assert codes.check("ada", code_at(watch.s + 30)) is Verdict.WRONG
    assert codes.check("ada", code_at(watch.s - 60)) is Verdict.WRONG
    assert codes.check("ada", code_at(watch.s - 30)) is Verdict.RIGHT
    assert codes.check("ada", code_at(watch.s)) is Verdict.RIGHT
    assert codes.check("ada", code_at(watch.s - 30)) is Verdict.WRONG


def test_a_used_code_stays_used_when_the_clock_is_in_the_next_step_or_goes_back(
    codes: ReaderCodes, watch: Watch
) -> None:
    enrolled(codes, watch)
    code = code_at(watch.s)
    assert codes.check("ada", code) is Verdict.RIGHT

    watch.s += 30
    assert codes.check("ada", code) is Verdict.WRONG
    watch.s -= 3600
    assert codes.check("ada", code_at(watch.s)) is Verdict.WRONG
    watch.s += 3600
    assert codes.check("ada", code_at(watch.s)) is Verdict.RIGHT


def test_the_code_of_the_enrolment_is_used_up(codes: ReaderCodes, watch: Watch) -> None:
    codes.enrol("ada", SEED, code_at(watch.s))

    assert codes.check("ada", code_at(watch.s)) is Verdict.WRONG


def test_five_wrong_codes_close_a_reader_for_fifteen_minutes(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)
    enrolled(codes, watch, "bob")

    for _ in range(5):
        assert codes.check("ada", wrong_at(watch)) is Verdict.WRONG
        watch.s += 60

    assert codes.check("ada", code_at(watch.s)) is Verdict.CLOSED
    assert codes.check("bob", code_at(watch.s)) is Verdict.RIGHT
    watch.s += CLOSED_S - 61
    assert codes.check("ada", code_at(watch.s)) is Verdict.CLOSED
    watch.s += 2
    assert codes.check("ada", code_at(watch.s)) is Verdict.RIGHT


def test_wrong_codes_of_long_ago_and_before_a_right_one_do_not_count(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)
    for _ in range(4):
        codes.check("ada", wrong_at(watch))
    watch.s += CLOSED_S + 1
    for _ in range(4):
        assert codes.check("ada", wrong_at(watch)) is Verdict.WRONG

    assert codes.check("ada", code_at(watch.s)) is Verdict.RIGHT
    for _ in range(4):
        assert codes.check("ada", wrong_at(watch)) is Verdict.WRONG


def test_a_clock_that_jumps_back_opens_no_closed_reader(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)
    for _ in range(5):
        codes.check("ada", wrong_at(watch))

    watch.s -= 86_400

    assert codes.check("ada", code_at(watch.s)) is Verdict.CLOSED


def test_who_is_no_reader_is_told_what_a_reader_is_told(codes: ReaderCodes, watch: Watch) -> None:
    enrolled(codes, watch)

    nobody = [codes.check(f"eve{number}", code_at(watch.s)) for number in range(7)]

    assert nobody == [Verdict.WRONG] * 5 + [Verdict.CLOSED] * 2
    assert codes.check("reader.nobody", code_at(watch.s)) is Verdict.CLOSED
    assert codes.check("ada", code_at(watch.s)) is Verdict.RIGHT


def test_of_twenty_who_use_a_code_at_once_one_succeeds(codes: ReaderCodes, watch: Watch, tmp_path: Path) -> None:
    enrolled(codes, watch)
    code = code_at(watch.s)
    verdicts: list[Verdict] = []
    ready = threading.Barrier(20)
    deadline = time.monotonic() + 120

    def use() -> None:
        with closing(opened(tmp_path, watch)) as mine:
            mine.readers()
            ready.wait(60)
            while True:
                try:
                    verdicts.append(mine.check("ada", code))
                    return
                except KeyStoreUnavailable:
                    # On a slow disk, the store is busy for longer than anybody waits. Nothing was judged: ask again.
                    if time.monotonic() > deadline:
                        raise

    threads = [threading.Thread(target=use) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)

    assert verdicts.count(Verdict.RIGHT) == 1
    assert len(verdicts) == 20


def test_a_reader_is_enrolled_once_listed_and_removed(codes: ReaderCodes, watch: Watch) -> None:
    with pytest.raises(OperatorError, match="not right"):
        codes.enrol("ada", SEED, wrong_at(watch))
    codes.enrol("ada", SEED, code_at(watch.s))
    for name in ("", "Ada", "a" * 33, "../x", "a b", "-a"):
        with pytest.raises(OperatorError, match="small letters"):
            codes.enrol(name, SEED, code_at(watch.s))
    with pytest.raises(ConflictError):
        codes.enrol("ada", SEED, code_at(watch.s))

    (reader,) = codes.readers()
    codes.remove("ada")

    assert (reader.name, reader.since, reader.closed_until) == ("ada", START_S, 0)
    assert codes.readers() == []
    with pytest.raises(NotFoundError):
        codes.remove("ada")
    watch.s += 60
    assert codes.check("ada", code_at(watch.s)) is Verdict.WRONG


def test_no_byte_of_the_key_store_is_the_secret(codes: ReaderCodes, watch: Watch, tmp_path: Path) -> None:
    enrolled(codes, watch)

    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert SEED.encode() not in written
    assert b"reader:ada" in written


def test_the_hours_count_is_a_sliding_hour_and_outlives_the_process(
    codes: ReaderCodes, watch: Watch, tmp_path: Path
) -> None:
    assert codes.allow(3, 5).granted
    watch.s += 1800
    assert codes.allow(2, 5).granted

    with ExitStack() as stack:
        again = stack.enter_context(closing(opened(tmp_path, watch)))
        refused = again.allow(1, 5)
        watch.s += 1799
        still = again.allow(1, 5)
        watch.s += 61
        granted = again.allow(3, 5)

        assert (refused.granted, refused.opened) == (False, 5)
        assert not still.granted
        assert (granted.granted, granted.opened) == (True, 2)
        assert again.opened_in_hour() == 5


def test_a_ceiling_of_nought_opens_nothing(codes: ReaderCodes) -> None:
    assert not codes.allow(1, 0).granted


def test_a_clock_that_jumps_back_empties_no_count(codes: ReaderCodes, watch: Watch) -> None:
    assert codes.allow(5, 5).granted

    watch.s -= 86_400

    assert not codes.allow(1, 5).granted


def test_an_app_is_told_whose_log_it_opens() -> None:
    seed = new_reader_seed()

    parsed = pyotp.parse_uri(reader_uri("ada", seed, issuer="Secure LLM Proxy", log="slp.default/host"))

    assert isinstance(parsed, pyotp.TOTP)
    assert (parsed.name, parsed.issuer) == ("ada (slp.default/host)", "Secure LLM Proxy")
    assert (len(seed), parsed.secret) == (32, seed)
