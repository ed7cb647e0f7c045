"""Signing in, on both databases: what is answered, what is counted, what a session has gone through."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy.orm import Session

from secure_llm_proxy.foundation.database import Database
from secure_llm_proxy.foundation.errors import (
    AuthenticationFailed,
    ErrorCode,
    InvalidRequest,
    PermissionDenied,
    ProxyError,
    Unavailable,
)
from secure_llm_proxy.identity import (
    Accounts,
    EnrolmentWanted,
    PasswordHash,
    SecondFactorWanted,
    SignedIn,
    SignIn,
    User,
)
from secure_llm_proxy.identity.login_troubles import place_of
from secure_llm_proxy.identity.passwords import PasswordCheck, PasswordVault, _peppered
from tests.support.identity_room import PASSWORD_PEPPER, PEPPER, migrated_database
from tests.support.postgresql import PrivatePostgreSQL
from tests.support.sign_in_room import ELSEWHERE, LOGIN_PEPPER, OFFICE, PASSPHRASE, App, SignInRoom

SENTENCE = "The username, password or code is not right."
OTHER_PASSPHRASE = "green ferry under two bridges"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('sign-in') / 'app.db'}"
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


@pytest.fixture(scope="module")
def password() -> PasswordHash:
    return PasswordVault(PASSWORD_PEPPER).hash(PASSPHRASE)


@pytest.fixture
def member(room: SignInRoom, password: PasswordHash) -> User:
    return room.make_user(password=password)


@pytest.fixture
def admin(room: SignInRoom, password: PasswordHash) -> User:
    return room.make_user("admin", password=password)


def refusal_of(
    room: SignInRoom,
    username: str,
    tried: str = "wrong",
    *,
    address: str = OFFICE,
    mfa_code: str | None = None,
    recovery_code: str | None = None,
    device: str | None = None,
) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as refused:
        room.sign(username, tried, address=address, mfa_code=mfa_code, recovery_code=recovery_code, device=device)
    assert (refused.value.public, refused.value.code) == (SENTENCE, ErrorCode.LOGIN_FAILED)
    return refused.value


def count_failures(room: SignInRoom, user: User, times: int, address: str = OFFICE) -> None:
    """As so many wrong passwords would be counted, without their work."""

    def count(session: Session) -> None:
        for _ in range(times):
            room.troubles.try_at(session, user.username, place_of(address))
            room.troubles.try_account(session, user.username)

    room.run(count)


def count_failures_everywhere(room: SignInRoom, user: User) -> None:
    """A hundred, five at each of twenty places."""

    def count(session: Session) -> None:
        for number in range(20):
            for _ in range(5):
                room.troubles.try_at(session, user.username, place_of(f"203.0.{number}.1"))
                room.troubles.try_account(session, user.username)

    room.run(count)


# --- the ways in ------------------------------------------------------------------------------------------------------


def test_a_member_signs_in_with_the_password(room: SignInRoom, member: User) -> None:
    signed = room.sign(member.username)

    assert isinstance(signed, SignedIn)
    assert room.found(signed.secret) == signed.session
    assert (signed.session.state, signed.session.second_factor_at) == ("active", None)
    assert signed.secret not in repr(signed)
    assert str(signed.device) not in repr(signed)


def test_who_must_have_a_second_factor_sets_it_up_first(room: SignInRoom, admin: User) -> None:
    wanted = room.sign(admin.username)
    assert isinstance(wanted, EnrolmentWanted)
    pending = room.found(wanted.secret)
    assert pending is not None

    app = App(room.clock, room.sign_in.begin_enrolment(pending).secret_base32)
    signed, codes = room.sign_in.confirm_enrolment(pending, app.code())

    assert pending.state == "pending"
    assert signed.session.state == "active"
    assert signed.session.is_fresh(room.clock.now())
    assert len(codes) == 10
    assert room.found(wanted.secret) is None
    assert room.found(signed.secret) is not None


@pytest.mark.parametrize(
    ("required", "role", "of_itself", "owes"),
    [
        ("admins", "owner", False, True),
        ("admins", "operator", False, False),
        ("admins", "member", True, True),
        ("all", "viewer", False, True),
        ("none", "admin", False, False),
    ],
)
def test_the_setting_and_the_account_say_who_must_have_one(
    database: Database, password: PasswordHash, required: str, role: str, *, of_itself: bool, owes: bool
) -> None:
    room = SignInRoom(database, settings={"mfa_required": required})
    user = room.make_user(role, password=password, mfa_required=of_itself)

    signed = room.sign(user.username)

    assert isinstance(signed, EnrolmentWanted if owes else SignedIn)


def test_every_step_gives_the_session_another_secret(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)

    wanted = room.waiting(admin)
    signed = room.sign_in.second_factor(wanted.secret, mfa_code=app.code(), address=OFFICE, agent="tests/2")
    room.clock.advance(30)
    raised = room.sign_in.step_up(signed.session, app.code())
    changed = room.sign_in.change_password(raised.session, PASSPHRASE, OTHER_PASSPHRASE)

    secrets = [wanted.secret, signed.secret, raised.secret, changed.secret]
    assert len(set(secrets)) == 4
    assert [room.found(secret) is not None for secret in secrets] == [False, False, False, True]


def test_password_and_code_come_in_one_request_too(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)

    signed = room.signed_in(admin, mfa_code=app.code())

    assert signed.session.second_factor_at == room.clock.now()
    assert refusal_of(room, admin.username, PASSPHRASE, mfa_code=app.code()).detail == "wrong second factor"


def test_a_recovery_code_signs_in_once_and_tells_how_many_are_left(room: SignInRoom, admin: User) -> None:
    code = room.enrol(admin).recovery_codes[0]

    signed = room.sign(admin.username, recovery_code=code)

    assert isinstance(signed, SignedIn)
    assert signed.recovery_codes_left == 9
    assert signed.session.second_factor_at is None, "it opens nothing that asks for a step-up"
    assert refusal_of(room, admin.username, PASSPHRASE, recovery_code=code).detail == "wrong recovery code"


def test_who_is_promoted_while_the_password_is_compared_owes_what_the_new_role_owes(
    room: SignInRoom, member: User
) -> None:
    class Promoting(Accounts):
        """An administrator is quick."""

        def check_password(self, stored: PasswordHash | None, password: str) -> PasswordCheck:
            room.run(lambda session: room.accounts.update_user(session, member.id, {"role": "admin"}))
            return super().check_password(stored, password)

    accounts = Promoting(room.section, room.clock, pepper=PEPPER, password_pepper=PASSWORD_PEPPER)
    sign_in = SignIn(
        room.section, room.clock, room.database, accounts, room.second_factors, room.sessions, pepper=LOGIN_PEPPER
    )

    outcome = sign_in.password(member.username, PASSPHRASE, address=OFFICE, agent="t", kind="token")

    assert isinstance(outcome, EnrolmentWanted)


def test_a_waiting_sign_in_takes_one_code_and_is_over(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)
    wanted = room.waiting(admin)

    signed = room.sign_in.second_factor(wanted.secret, recovery_code=app.recovery_codes[0], address=OFFICE, agent="t")

    assert signed.session.second_factor_at is None
    with pytest.raises(AuthenticationFailed) as refused:
        room.sign_in.second_factor(wanted.secret, mfa_code=app.code(), address=OFFICE, agent="t")
    assert refused.value.code is ErrorCode.SESSION_INVALID


def test_an_active_session_is_no_waiting_sign_in(room: SignInRoom, member: User) -> None:
    signed = room.signed_in(member)

    for secret in (signed.secret, "slp_sess_nonsense"):
        with pytest.raises(AuthenticationFailed) as refused:
            room.sign_in.second_factor(secret, mfa_code="123456", address=OFFICE, agent="t")
        assert refused.value.code is ErrorCode.SESSION_INVALID


def test_of_two_codes_for_one_waiting_sign_in_one_counts(room: SignInRoom, admin: User) -> None:
    codes = room.enrol(admin).recovery_codes
    wanted = room.waiting(admin)
    barrier, signed, refused = threading.Barrier(4), list[SignedIn](), list[ErrorCode]()

    def show(code: str) -> None:
        barrier.wait(60)
        while True:
            try:
                signed.append(room.sign_in.second_factor(wanted.secret, recovery_code=code, address=OFFICE, agent="t"))
            except Unavailable:
                continue
            except AuthenticationFailed as error:
                refused.append(error.code)
            return

    threads = [threading.Thread(target=show, args=(code,)) for code in codes[:4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert refused == [ErrorCode.SESSION_INVALID] * 3
    assert room.found(signed[0].secret) is not None
    # Whoever came too late has used no code up.
    assert room.run(lambda session: room.second_factors.state(session, admin.id)).recovery_codes_left == 9


def test_signing_out_ends_the_session_and_twice_is_no_error(room: SignInRoom, member: User) -> None:
    signed = room.signed_in(member)

    room.sign_in.sign_out(signed.session)
    room.sign_in.sign_out(signed.session)

    assert room.found(signed.secret) is None


# --- one answer for everything that is wrong --------------------------------------------------------------------------


def test_whatever_is_wrong_has_one_answer_and_costs_one_argon2(
    room: SignInRoom, password: PasswordHash, member: User, admin: User
) -> None:
    app = room.enrol(admin)
    locked, disabled, fresh = (room.make_user(password=password) for _ in range(3))
    room.run(lambda session: room.accounts.lock_user(session, locked.username))
    room.run(lambda session: room.accounts.disable_user(session, disabled.username))
    unset, held = room.make_user(), room.make_user(password=password)
    count_failures(room, held, 5)
    cases = [
        ("nobody-of-that-name", PASSPHRASE, None),
        ("nobody-of-that-name", "wrong", "123456"),
        (fresh.username, "wrong", None),
        (fresh.username, "", None),
        (fresh.username, "wrong", "123456"),
        (locked.username, PASSPHRASE, None),
        (disabled.username, PASSPHRASE, None),
        (unset.username, PASSPHRASE, None),
        (held.username, PASSPHRASE, None),
        (admin.username, PASSPHRASE, app.code(5)),
        (admin.username, PASSPHRASE, f"{app.code()} "),
        (admin.username, "wrong", app.code()),
    ]

    details, work = [], []
    for username, tried, code in cases:
        before = room.argon2_checks
        details.append(refusal_of(room, username, tried, mfa_code=code).detail)
        work.append(room.argon2_checks - before)

    assert work == [1] * len(cases)
    assert details == [
        "unknown user", "unknown user", "wrong password", "wrong password", "wrong password", "the account is locked",
        "the account is disabled", "no password set yet", "too many failures from this place", "wrong second factor",
        "wrong second factor", "wrong password",
    ]  # fmt: skip
    assert not any(member.username in str(detail) for detail in details)


@pytest.mark.parametrize("name", ["", " ", "a\x00b", "\ud800", "x" * 5000, "\u202e", "' OR 1=1 --"])
def test_names_that_nobody_can_have_are_unknown_users(room: SignInRoom, name: str) -> None:
    assert refusal_of(room, name).detail in {"unknown user", "too many failures from this place"}


def test_an_outdated_hash_is_renewed_by_a_sign_in_and_ends_nothing(room: SignInRoom) -> None:
    from argon2 import PasswordHasher  # noqa: PLC0415  an older release's parameters

    weaker = PasswordHash(PasswordHasher(2, 19456, 1).hash(_peppered(PASSWORD_PEPPER, PASSPHRASE)))
    user = room.make_user(password=weaker)
    before = room.open_session(user)

    signed = room.signed_in(user)

    stored = room.run(lambda session: room.accounts.credentials_of(session, user.username))
    assert stored is not None
    assert stored.password_hash != weaker
    assert room.accounts.check_password(stored.password_hash, PASSPHRASE) is PasswordCheck.RIGHT
    assert room.found(before.secret) is not None
    assert room.found(signed.secret) is not None


# --- what is counted --------------------------------------------------------------------------------------------------


def test_five_failures_make_one_place_wait_and_no_other(room: SignInRoom, member: User) -> None:
    waits = [refusal_of(room, member.username).retry_after_s for _ in range(5)]
    held = refusal_of(room, member.username, PASSPHRASE)

    assert waits == [None, None, None, None, 900]
    assert (held.detail, held.retry_after_s) == ("too many failures from this place", 900)
    assert isinstance(room.sign(member.username, address=ELSEWHERE), SignedIn)
    assert refusal_of(room, member.username, PASSPHRASE, address="192.0.2.250").retry_after_s == 900


def test_the_wait_ends_after_fifteen_minutes(room: SignInRoom, member: User) -> None:
    count_failures(room, member, 5)

    room.clock.advance(899)
    still = refusal_of(room, member.username, PASSPHRASE)
    room.clock.advance(1)

    assert still.retry_after_s == 1
    assert isinstance(room.sign(member.username), SignedIn)


def test_unknown_names_wait_like_known_ones(database: Database, password: PasswordHash) -> None:
    room = SignInRoom(database, settings={"login_attempts_max": 2})
    known = room.make_user(password=password).username

    known_waits = [refusal_of(room, known).retry_after_s for _ in range(3)]
    unknown_waits = [refusal_of(room, f"{known}x").retry_after_s for _ in range(3)]

    assert known_waits == unknown_waits == [None, 900, 900]


def test_a_success_begins_the_count_anew(room: SignInRoom, member: User) -> None:
    count_failures(room, member, 4)
    room.signed_in(member)

    waits = [refusal_of(room, member.username).retry_after_s for _ in range(4)]

    assert waits == [None] * 4


def test_settings_say_how_many_and_how_long(database: Database, password: PasswordHash) -> None:
    room = SignInRoom(database, settings={"login_attempts_max": 1, "lockout_s": 60})
    user = room.make_user(password=password)

    assert refusal_of(room, user.username).retry_after_s == 60
    assert refusal_of(room, user.username, PASSPHRASE).retry_after_s == 60


def test_one_name_written_otherwise_shares_the_count(room: SignInRoom, member: User) -> None:
    name = member.username
    fullwidth = "".join(chr(ord(character) - 0x21 + 0xFF01) for character in name)

    written = [name.upper(), f" {name} ", fullwidth, fullwidth.upper(), name]
    waits = [refusal_of(room, each).retry_after_s for each in written]

    assert waits == [None, None, None, None, 900]


def test_many_tries_at_once_are_not_more_than_many_in_a_row(room: SignInRoom, member: User) -> None:
    barrier, allowed = threading.Barrier(10), list[bool]()

    def attempt() -> None:
        barrier.wait(60)
        for _ in range(5):
            while True:
                try:
                    trial = room.run(lambda session: room.troubles.try_at(session, member.username, "192.0.2.0/24"))
                except Unavailable:
                    continue
                allowed.append(trial.allowed)
                break

    threads = [threading.Thread(target=attempt) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert (len(allowed), sum(allowed)) == (50, 5)


def test_after_a_hundred_failures_everywhere_only_who_is_known_may_try(room: SignInRoom, member: User) -> None:
    device = room.signed_in(member).device
    count_failures_everywhere(room, member)

    stranger = refusal_of(room, member.username, PASSPHRASE, address=ELSEWHERE)
    forged = refusal_of(room, member.username, PASSPHRASE, address=ELSEWHERE, device="slp_dev_" + "A" * 43)

    assert (stranger.detail, forged.detail) == ("too many failures of this account",) * 2
    assert stranger.retry_after_s == 900
    assert isinstance(room.sign(member.username, address=ELSEWHERE, device=device), SignedIn)


def test_a_place_of_an_earlier_success_is_known_too(room: SignInRoom, member: User) -> None:
    room.signed_in(member)
    count_failures_everywhere(room, member)

    signed = room.signed_in(member, address="192.0.2.99")

    # And with it the account's count begins anew.
    assert signed.session.address == "192.0.2.99"
    assert isinstance(room.sign(member.username, address=ELSEWHERE), SignedIn)


def test_who_shares_the_network_holds_no_known_device_up(room: SignInRoom, member: User) -> None:
    device = room.signed_in(member).device
    count_failures(room, member, 5)

    signed = room.signed_in(member, device=device)

    assert signed.device is None
    assert refusal_of(room, member.username, PASSPHRASE).retry_after_s == 900


def test_a_device_is_known_for_ninety_days_and_to_its_user_only(
    room: SignInRoom, member: User, password: PasswordHash
) -> None:
    other = room.make_user(password=password)
    device = room.signed_in(member).device

    at_once = room.signed_in(other, device=device).device
    room.clock.advance(90 * 86400)
    later = room.signed_in(member, device=device).device

    assert at_once is not None
    assert later not in {None, device}


def test_codes_are_tried_five_times_in_five_minutes(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)
    wanted = room.waiting(admin)

    def show(code: str) -> AuthenticationFailed:
        with pytest.raises(AuthenticationFailed) as refused:
            room.sign_in.second_factor(wanted.secret, mfa_code=code, address=OFFICE, agent="t")
        assert refused.value.public == SENTENCE
        return refused.value

    waits = [show(app.code(5)).retry_after_s for _ in range(5)]
    held = show(app.code())
    room.clock.advance(300)
    signed = room.sign_in.second_factor(wanted.secret, mfa_code=app.code(), address=OFFICE, agent="t")

    assert waits == [None, None, None, None, 300]
    assert (held.detail, held.retry_after_s) == ("too many second factors", 300)
    assert signed.session.state == "active"


def test_an_operator_who_unlocks_an_account_clears_every_count(room: SignInRoom, member: User) -> None:
    count_failures(room, member, 5)
    count_failures_everywhere(room, member)

    room.run(lambda session: room.sign_in.forget_troubles(session, member))

    assert isinstance(room.sign(member.username), SignedIn)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2ff:3::4", "2001:db8:1:200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("", "elsewhere"),
        ("unix", "elsewhere"),
    ],
)
def test_a_place_is_the_network_that_one_customer_has(address: str, place: str) -> None:
    assert place_of(address) == place


# --- what a session may change ----------------------------------------------------------------------------------------


def test_a_step_up_takes_a_code_that_was_not_used(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)
    signed = room.signed_in(admin, mfa_code=app.code())
    room.clock.advance(301)

    raised = room.sign_in.step_up(signed.session, app.code())

    assert not signed.session.is_fresh(room.clock.now())
    assert raised.session.is_fresh(room.clock.now())
    with pytest.raises(AuthenticationFailed) as replayed:
        room.sign_in.step_up(raised.session, app.code())
    assert replayed.value.code is ErrorCode.LOGIN_FAILED
    room.clock.advance(30)
    with pytest.raises(AuthenticationFailed) as dead:
        room.sign_in.step_up(signed.session, app.code())
    assert dead.value.code is ErrorCode.SESSION_INVALID


def test_without_a_second_factor_there_is_no_step_up(room: SignInRoom, member: User) -> None:
    signed = room.signed_in(member)

    with pytest.raises(PermissionDenied) as refused:
        room.sign_in.step_up(signed.session, "123456")

    assert refused.value.code is ErrorCode.SECOND_FACTOR_MISSING


def test_a_pending_session_steps_nowhere_up_and_changes_no_password(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)
    wanted = room.waiting(admin)

    with pytest.raises(AuthenticationFailed) as raised:
        room.sign_in.step_up(wanted.session, app.code())
    with pytest.raises(AuthenticationFailed) as changed:
        room.sign_in.change_password(wanted.session, PASSPHRASE, OTHER_PASSPHRASE)
    with pytest.raises(InvalidRequest) as begun:
        room.sign_in.begin_enrolment(wanted.session)

    assert raised.value.code is changed.value.code is ErrorCode.SECOND_FACTOR_REQUIRED
    assert begun.value.code is ErrorCode.SECOND_FACTOR_EXISTS


def test_a_second_factor_is_set_up_soon_after_signing_in_only(room: SignInRoom, member: User) -> None:
    signed = room.signed_in(member)
    room.clock.advance(300)
    room.sign_in.begin_enrolment(signed.session)
    room.clock.advance(1)

    with pytest.raises(PermissionDenied) as refused:
        room.sign_in.begin_enrolment(signed.session)

    assert refused.value.code is ErrorCode.STEP_UP_REQUIRED


def test_a_wrong_code_at_enrolment_can_be_corrected(room: SignInRoom, member: User) -> None:
    signed = room.signed_in(member)
    app = App(room.clock, room.sign_in.begin_enrolment(signed.session).secret_base32)

    with pytest.raises(AuthenticationFailed) as refused:
        room.sign_in.confirm_enrolment(signed.session, app.code(3))
    again, _codes = room.sign_in.confirm_enrolment(signed.session, app.code())

    assert refused.value.public == SENTENCE
    assert again.session.state == "active"
    assert room.found(signed.secret) is None


def test_a_changed_password_ends_the_other_sessions_and_keeps_the_second_factor(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)
    signed = room.signed_in(admin, mfa_code=app.code())
    other = room.open_session(admin)

    changed = room.sign_in.change_password(signed.session, PASSPHRASE, OTHER_PASSPHRASE)

    assert room.found(other.secret) is None
    assert room.found(signed.secret) is None
    assert room.found(changed.secret) is not None
    assert changed.session.second_factor_at == signed.session.second_factor_at
    assert refusal_of(room, admin.username, PASSPHRASE).detail == "wrong password"
    assert isinstance(room.sign(admin.username, OTHER_PASSPHRASE), SecondFactorWanted)


def test_a_password_is_changed_by_who_knows_it_and_guesses_are_counted(room: SignInRoom, member: User) -> None:
    signed = room.signed_in(member)

    refusals = []
    for tried in ["wrong"] * 5 + [PASSPHRASE]:
        with pytest.raises(AuthenticationFailed) as refused:
            room.sign_in.change_password(signed.session, tried, OTHER_PASSPHRASE)
        refusals.append((refused.value.code, refused.value.retry_after_s))

    assert refusals == [(ErrorCode.LOGIN_FAILED, None)] * 4 + [(ErrorCode.LOGIN_FAILED, 900)] * 2
    assert room.found(signed.secret) is not None


def test_with_a_second_factor_a_password_may_be_shorter(room: SignInRoom, member: User, admin: User) -> None:
    app = room.enrol(admin)
    twelve, eleven = "nine hedges!", "nine hedge!"

    changed = room.sign_in.change_password(room.signed_in(admin, mfa_code=app.code()).session, PASSPHRASE, twelve)
    refused = []
    for session, old, new in ((room.signed_in(member).session, PASSPHRASE, twelve), (changed.session, twelve, eleven)):
        with pytest.raises(InvalidRequest) as refusal:
            room.sign_in.change_password(session, old, new)
        refused.append((refusal.value.code, refusal.value.param, refusal.value.public))

    assert refused == [
        (ErrorCode.PASSWORD_REFUSED, "password", "The password is too short: at least 15 characters."),
        (ErrorCode.PASSWORD_REFUSED, "password", "The password is too short: at least 12 characters."),
    ]


# --- one-time tokens --------------------------------------------------------------------------------------------------


def test_a_reset_sets_a_password_and_does_not_skip_the_second_factor(room: SignInRoom, admin: User) -> None:
    app = room.enrol(admin)
    before = room.signed_in(admin, mfa_code=app.code())
    token = room.run(lambda session: room.accounts.start_password_reset(session, admin.username))

    user = room.sign_in.set_up(token.secret, OTHER_PASSPHRASE)

    assert user.username == admin.username
    assert room.found(before.secret) is None
    assert isinstance(room.sign(admin.username, OTHER_PASSPHRASE), SecondFactorWanted)
    room.clock.advance(30)
    assert isinstance(room.sign(admin.username, OTHER_PASSPHRASE, mfa_code=app.code()), SignedIn)


def test_tokens_that_are_no_good_have_one_answer(room: SignInRoom, member: User) -> None:
    used, late, of_locked = (room.make_user() for _ in range(3))
    tokens = [
        room.run(lambda session, user=user: room.accounts.start_setup(session, user.username)).secret  # type: ignore[misc]
        for user in (used, late, of_locked)
    ]
    room.sign_in.set_up(tokens[0], PASSPHRASE)
    room.run(lambda session: room.accounts.lock_user(session, of_locked.username))
    room.clock.advance(3601)

    answers = set()
    for token in [*tokens, "slp_setup_" + "A" * 43, "", "\u2603"]:
        with pytest.raises(ProxyError) as refused:
            room.sign_in.set_up(token, PASSPHRASE)
        answers.add((refused.value.status, refused.value.code, refused.value.public))

    assert len(answers) == 1
    assert next(iter(answers))[:2] == (400, ErrorCode.SETUP_TOKEN_INVALID)


def test_a_refused_password_leaves_the_token_good(room: SignInRoom) -> None:
    user = room.make_user()
    token = room.run(lambda session: room.accounts.start_setup(session, user.username))

    with pytest.raises(InvalidRequest) as refused:
        room.sign_in.set_up(token.secret, "too short")
    room.sign_in.set_up(token.secret, PASSPHRASE)

    assert refused.value.code is ErrorCode.PASSWORD_REFUSED
    assert isinstance(room.sign(user.username), SignedIn)
