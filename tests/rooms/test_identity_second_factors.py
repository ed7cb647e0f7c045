"""Second factors on both databases: enrolled, used once, sealed, replaced by recovery codes, removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    InvalidRequest,
    PermissionDenied,
    Unavailable,
)
from secure_llm_proxy.identity import SecondFactors, qr_svg, qr_text
from tests.support.identity_room import PEPPER, migrated_database
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.sign_in_room import App, SignInRoom

URI = "otpauth://totp/Secure%20LLM%20Proxy:alice?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=Secure%20LLM%20Proxy"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('second-factors') / 'app.db'}"
    else:
        server = request.getfixturevalue("postgresql")
        assert isinstance(server, PrivatePostgreSQL)
        url = server.create_database()
    opened = migrated_database(url)
    yield opened
    opened.close()


@pytest.fixture
def room(database: Database) -> SignInRoom:
    return SignInRoom(database)


def successes_of(tries: list[Callable[[], bool]], at_once: int) -> int:
    """How many of `tries` succeed when `at_once` threads share them. A database that is too busy is asked again."""
    waiting, succeeded, failed = list(tries), list[bool](), list[BaseException]()
    barrier = threading.Barrier(at_once)

    def work() -> None:
        try:
            barrier.wait(60)
            while True:
                try:
                    attempt = waiting.pop()
                except IndexError:
                    return
                while True:
                    try:
                        succeeded.append(attempt())
                        break
                    except Unavailable:
                        continue
        except BaseException as error:  # noqa: BLE001  told by the test
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert len(succeeded) == len(tries)
    return sum(succeeded)


def test_an_enrolment_counts_once_its_app_was_shown_to_work(room: SignInRoom) -> None:
    user = room.make_user()

    before = room.run(lambda session: room.second_factors.state(session, user.id))
    app = room.enrol(user)
    after = room.run(lambda session: room.second_factors.state(session, user.id))

    assert (before.enrolled, before.recovery_codes_left) == (False, 0)
    assert (after.enrolled, after.recovery_codes_left) == (True, 10)
    assert room.check(user, app.code())


def test_what_an_app_is_given_names_issuer_and_user_and_holds_160_bits(room: SignInRoom) -> None:
    user = room.make_user()

    enrolment = room.run(lambda session: room.second_factors.begin(session, user.id))

    assert len(enrolment.secret_base32) * 5 >= 160
    assert enrolment.uri.startswith(f"otpauth://totp/Secure%20LLM%20Proxy:{user.username}?secret=")
    assert enrolment.secret_base32 not in repr(enrolment)


def test_the_code_of_the_enrolment_is_used_up_by_it(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)

    assert not room.check(user, app.code(-1))
    assert room.check(user, app.code())


def test_a_wrong_code_confirms_nothing(room: SignInRoom) -> None:
    user = room.make_user()
    room.run(lambda session: room.second_factors.begin(session, user.id))

    with pytest.raises(AuthenticationFailed) as refused:
        room.run(lambda session: room.second_factors.confirm(session, user.id, "12345x"))

    assert refused.value.code is ErrorCode.LOGIN_FAILED
    assert not room.run(lambda session: room.second_factors.state(session, user.id)).enrolled


def test_nobody_confirms_what_was_never_begun(room: SignInRoom) -> None:
    user = room.make_user()

    with pytest.raises(AuthenticationFailed):
        room.run(lambda session: room.second_factors.confirm(session, user.id, "123456"))


def test_an_unconfirmed_secret_is_replaced_and_no_code_of_it_counts(room: SignInRoom) -> None:
    user = room.make_user()
    first = room.run(lambda session: room.second_factors.begin(session, user.id))
    room.run(lambda session: room.second_factors.begin(session, user.id))

    code = App(room.clock, first.secret_base32).code()

    with pytest.raises(AuthenticationFailed):
        room.run(lambda session: room.second_factors.confirm(session, user.id, code))


def test_a_confirmed_factor_must_be_removed_before_another_is_begun(room: SignInRoom) -> None:
    user = room.make_user()
    room.enrol(user)

    with pytest.raises(InvalidRequest) as refused:
        room.run(lambda session: room.second_factors.begin(session, user.id))

    assert refused.value.code is ErrorCode.SECOND_FACTOR_EXISTS


def test_a_code_is_good_in_its_own_30_seconds_and_the_next_ones_only(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)
    room.clock.advance(600)

    refused = [room.check(user, app.code(steps)) for steps in (-2, 1, 2)]
    accepted = [room.check(user, app.code(steps)) for steps in (-1, 0)]

    assert refused == [False, False, False]
    assert accepted == [True, True]


def test_strictly_only_the_code_of_now_is_good(room: SignInRoom) -> None:
    strict = SignInRoom(room.database, room.clock, {"mfa_strict": True})
    user = strict.make_user()
    app = strict.enrol(user)
    room.clock.advance(600)

    assert not strict.check(user, app.code(-1))
    assert strict.check(user, app.code())


def test_after_a_newer_code_an_older_one_is_refused(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)
    room.clock.advance(600)

    assert room.check(user, app.code())
    assert not room.check(user, app.code())
    assert not room.check(user, app.code(-1))


@pytest.mark.parametrize(
    "dress",
    [
        lambda code: f" {code}",
        lambda code: f"{code} ",
        lambda code: f"{code[:3]} {code[3:]}",
        lambda code: f"{code}\n",
        lambda code: f"0{code}",
        lambda code: code[:-1],
        lambda code: "".join(chr(ord("\uff10") + int(digit)) for digit in code),
        lambda code: "".join(chr(ord("\u0660") + int(digit)) for digit in code),
        lambda _code: "",
    ],
    ids=["space before", "space after", "space within", "line end", "seven", "five", "fullwidth", "arabic", "nothing"],
)
def test_a_code_in_other_dress_is_refused_and_not_used_up(room: SignInRoom, dress: Callable[[str], str]) -> None:
    user = room.make_user()
    app = room.enrol(user)

    assert not room.check(user, dress(app.code()))
    assert room.check(user, app.code())


def test_of_fifty_that_send_one_code_at_once_one_succeeds(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)
    # SQLite lets one writer in at a time, and the others sleep: what many at once can do shows on PostgreSQL.
    rounds, at_once = (10, 4) if room.database.is_sqlite else (200, 10)

    counts = []
    for number in range(rounds):
        room.clock.advance(30)
        code = app.code()
        # Fifty in every tenth round, ten in the others: five times as quick, and as many rounds.
        tries = 50 if number % 10 == 0 else 10
        counts.append(successes_of([lambda code=code: room.check(user, code)] * tries, at_once))  # type: ignore[misc]

    assert counts == [1] * rounds


def test_of_fifty_that_send_one_recovery_code_at_once_one_succeeds(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)

    def use(code: str) -> Callable[[], bool]:
        return lambda: room.run(lambda session: room.second_factors.use_recovery_code(session, user.id, code))

    counts = [successes_of([use(code)] * 50, 10) for code in app.recovery_codes[:5]]

    assert counts == [1] * 5
    assert room.run(lambda session: room.second_factors.state(session, user.id)).recovery_codes_left == 5


def test_recovery_codes_hold_112_bits_and_are_not_stored(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)

    assert len(set(app.recovery_codes)) == 10
    for code in app.recovery_codes:
        assert len(code.replace("-", "")) * 5 >= 112
    with room.database.engine.connect() as connection:
        stored = connection.execute(
            text("SELECT digest FROM recovery_codes WHERE user_id = :user"), {"user": user.id}
        ).all()
    for code in app.recovery_codes:
        assert code.replace("-", "").encode() not in b"".join(bytes(row.digest) for row in stored)


@pytest.mark.parametrize("dress", [str, str.lower, lambda code: code.replace("-", ""), lambda code: f"-{code}-"])
def test_dashes_and_case_of_a_recovery_code_do_not_matter(room: SignInRoom, dress: Callable[[str], str]) -> None:
    user = room.make_user()
    code = room.enrol(user).recovery_codes[3]

    def use() -> bool:
        return room.run(lambda session: room.second_factors.use_recovery_code(session, user.id, dress(code)))

    assert (use(), use()) == (True, False)


def test_a_recovery_code_is_no_good_for_another_user(room: SignInRoom) -> None:
    code = room.enrol(room.make_user()).recovery_codes[0]
    other = room.make_user()
    room.enrol(other)

    def use(tried: str) -> bool:
        return room.run(lambda session: room.second_factors.use_recovery_code(session, other.id, tried))

    assert [use(tried) for tried in (code, f" {code}", f"{code}\u0131", "")] == [False] * 4


def test_new_recovery_codes_void_the_earlier_ones(room: SignInRoom) -> None:
    user = room.make_user()
    old = room.enrol(user).recovery_codes

    new = room.run(lambda session: room.second_factors.new_recovery_codes(session, user.id))

    assert not room.run(lambda session: room.second_factors.use_recovery_code(session, user.id, old[0]))
    assert room.run(lambda session: room.second_factors.use_recovery_code(session, user.id, new[0]))


def test_without_a_second_factor_there_are_no_recovery_codes(room: SignInRoom) -> None:
    user = room.make_user()

    with pytest.raises(PermissionDenied) as refused:
        room.run(lambda session: room.second_factors.new_recovery_codes(session, user.id))

    assert refused.value.code is ErrorCode.SECOND_FACTOR_MISSING


def test_a_removed_factor_and_its_recovery_codes_are_no_good(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)

    removed = [room.run(lambda session: room.second_factors.remove(session, user.id)) for _ in range(2)]

    assert removed == [True, False]
    assert not room.check(user, app.code())
    assert not room.run(lambda session: room.second_factors.use_recovery_code(session, user.id, app.recovery_codes[0]))
    assert room.run(lambda session: room.second_factors.begin(session, user.id))


def test_the_secret_lies_sealed_and_opens_for_its_user_only(room: SignInRoom) -> None:
    user, other = room.make_user(), room.make_user()
    app, others_app = room.enrol(user), room.enrol(other)

    with room.database.engine.begin() as connection:
        row = connection.execute(
            text("SELECT sealed_secret FROM totp_factors WHERE user_id = :user"), {"user": user.id}
        )
        sealed = bytes(row.scalar_one())
        connection.execute(
            text("UPDATE totp_factors SET sealed_secret = :sealed WHERE user_id = :user"),
            {"sealed": sealed, "user": other.id},
        )

    assert app.secret.encode() not in sealed
    assert not room.check(other, app.code())
    assert not room.check(other, others_app.code())
    assert room.check(user, app.code())


def test_under_another_key_nothing_opens(room: SignInRoom) -> None:
    user = room.make_user()
    app = room.enrol(user)
    elsewhere = SecondFactors(room.section, room.clock, seal_key=b"another key, also 32 bytes long.", pepper=PEPPER)

    assert not room.run(lambda session: elsewhere.check(session, user.id, app.code()))


def test_a_qr_code_for_a_page_needs_neither_script_nor_style() -> None:
    drawn = qr_svg(URI)

    assert drawn.startswith("<svg ")
    for forbidden in ("style", "script", "class", "href", "onload", "JBSWY3DP"):
        assert forbidden not in drawn


def test_a_qr_code_for_a_terminal_fits_80_columns_and_moves_no_cursor() -> None:
    drawn = qr_text(URI)

    assert all(len(line) <= 80 for line in drawn.splitlines())
    assert set(drawn) <= set("\u2588\u2580\u2584 \n")
