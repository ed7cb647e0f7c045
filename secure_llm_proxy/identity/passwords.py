"""Passwords: which are refused, and what is kept of the others.

Kept is Argon2id (RFC 9106; 64 MiB, 3 passes, 1 lane) of an HMAC of the password under the deployment's pepper: a copied
database alone gives an attacker nothing to guess against. The password is taken exactly as received (ASVS 6.2.8).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import NewType, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from argon2.low_level import Type
from gevent.threadpool import ThreadPool

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.settings import IdentitySettings

PasswordHash = NewType("PasswordHash", str)
T = TypeVar("T")

PASSWORD_BYTES_MAX = 1024
_MEMORY_KIB, _PASSES, _LANES = 65_536, 3, 1
# Four times 64 MiB is what logins may take of a host's memory at once; the rest queue.
_CONCURRENT_HASHES = 4
_PRODUCT_WORDS = ("securellmproxy", "secureproxy", "llmproxy")
_CONTEXT_WORD_LENGTH_MIN = 4
_REST_LENGTH_MIN = 8
_DISTINCT_MIN = 5
_WALKS = (
    "0123456789" * 4,
    "abcdefghijklmnopqrstuvwxyz" * 2,
    "qwertyuiopasdfghjklzxcvbnm" * 2,
    "qwertzuiopasdfghjklyxcvbnm" * 2,
    "azertyuiopqsdfghjklmwxcvbn" * 2,
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/" * 2,
    "1q2w3e4r5t6y7u8i9o0p" * 2,
    "q1w2e3r4t5y6u7i8o9p0" * 2,
)
_SUBSTITUTES = (str.maketrans("013457@$!|", "oieastasii"), str.maketrans("013457@$!|", "oleastasil"))


class PasswordCheck(StrEnum):
    """`OUTDATED`: it is the password, and it should be hashed again with today's parameters."""

    RIGHT = "right"
    OUTDATED = "outdated"
    WRONG = "wrong"


class PasswordRules:
    """Which passwords may be set: long enough, not common, not made of what everybody knows (ASVS 6.2.1, .4, .9, .11).

    No composition rules by default (NIST SP 800-63B-4 forbids them); the origin's four settings switch them on.
    """

    def __init__(self, settings: IdentitySettings) -> None:
        self._settings = settings

    def refusal(self, password: str, *, context: tuple[str, ...], with_second_factor: bool = False) -> str | None:
        """Why `password` must not be set, as a sentence with the way out; None when it may.

        `context` are the words that an attacker tries first for this person: username, e-mail address.
        """
        settings = self._settings
        shortest = settings.password_length_min
        if with_second_factor:
            shortest = min(shortest, settings.password_length_min_with_mfa)
        if len(password) < shortest:
            return f"The password is too short: at least {shortest} characters."
        try:
            size = len(password.encode())
        except UnicodeEncodeError:
            return "The password is not valid Unicode text; type it again."
        if size > PASSWORD_BYTES_MAX:
            return f"The password is too long: at most {PASSWORD_BYTES_MAX} bytes in UTF-8."
        if (missing := self._missing_class(password)) is not None:
            return f"The password needs at least one {missing} (a setting of this deployment)."
        if _is_common(password):
            return "The password is among the first that attackers try; choose an uncommon one, several words for instance."
        if _leans_on(password, context):
            return "The password is little more than a name of yours or of this product; choose another."
        return None

    def _missing_class(self, password: str) -> str | None:
        settings = self._settings
        if settings.password_require_uppercase and not any(map(str.isupper, password)):
            return "upper-case letter"
        if settings.password_require_lowercase and not any(map(str.islower, password)):
            return "lower-case letter"
        if settings.password_require_digits and not any(map(str.isdigit, password)):
            return "digit"
        if settings.password_require_special and all(map(str.isalnum, password)):
            return "character that is neither letter nor digit"
        return None


class PasswordVault:
    """Hashes and checks passwords, at most four at a time, in threads of its own so that an event loop goes on.

    `checks_made` counts the Argon2 verifications: who asks for an unknown user must cause as many as for a known one.
    A password that was hashed under one of `previous_peppers` is the right one, and outdated; a wrong one costs a
    verification more for each of them.
    """

    def __init__(self, pepper: bytes, previous_peppers: Sequence[bytes] = ()) -> None:
        self._peppers = (pepper, *previous_peppers)
        self._argon2 = PasswordHasher(_PASSES, _MEMORY_KIB, _LANES, type=Type.ID)
        self._threads: ThreadPool | None = None
        # Nobody's: salt and hash are drawn, so that the first unknown user costs no more than the others.
        self._decoy = f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${_unpadded(16)}${_unpadded(32)}"
        self.checks_made = 0

    def hash(self, password: str) -> PasswordHash:
        return PasswordHash(self._run(self._argon2.hash, _peppered(self._peppers[0], password)))

    def check(self, stored: str | None, password: str) -> PasswordCheck:
        """Compare with a stored hash; None (no such user, no password yet) costs the same work and is WRONG."""
        for pepper in self._peppers:
            self.checks_made += 1
            matches = self._run(self._verified, self._decoy if stored is None else stored, _peppered(pepper, password))
            if matches and stored is not None:
                outdated = pepper is not self._peppers[0] or self._argon2.check_needs_rehash(stored)
                return PasswordCheck.OUTDATED if outdated else PasswordCheck.RIGHT
        return PasswordCheck.WRONG

    def _verified(self, stored: str, peppered: str) -> bool:
        try:
            return self._argon2.verify(stored, peppered)
        except VerifyMismatchError:
            return False
        except (VerificationError, InvalidHashError) as error:
            raise OperatorError("A stored password hash is damaged; set a new password with reset-password.") from error

    def _run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._threads is None:
            self._threads = ThreadPool(_CONCURRENT_HASHES)
        result: T = self._threads.apply(work, arguments)
        return result


def _peppered(pepper: bytes, password: str) -> str:
    return base64.b64encode(hmac.digest(pepper, password.encode("utf-8", "surrogatepass"), hashlib.sha256)).decode()


def _unpadded(size: int) -> str:
    return base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")


def _is_common(password: str) -> bool:
    common = common_passwords()
    folded = password.casefold()
    core = folded.strip("0123456789!?.,;:@#$%^&*()+-_=/\\ ")
    candidates = {folded, core} | {form.translate(table) for form in (folded, core) for table in _SUBSTITUTES}
    unit = _repeated_unit(folded)
    return (
        not common.isdisjoint(candidates)
        or len(set(folded)) < _DISTINCT_MIN
        or (unit is not None and (len(unit) < _REST_LENGTH_MIN or unit in common))
        or any(folded in walk or folded[::-1] in walk for walk in _WALKS)
    )


def _leans_on(password: str, context: tuple[str, ...]) -> bool:
    squeezed, signs = _squeezed(password), {sign for sign in password if not sign.isalnum()}
    parts = {part for word in context for part in (word, *word.split("@")[:1])}
    words = {_squeezed(part) for part in parts} | set(_PRODUCT_WORDS)
    for word in sorted(words, key=len, reverse=True):
        if squeezed == word:
            return True
        if len(word) >= _CONTEXT_WORD_LENGTH_MIN and word in squeezed:
            squeezed = squeezed.replace(word, "")
            if len(squeezed) + len(signs) < _REST_LENGTH_MIN:
                return True
    return False


def _squeezed(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _repeated_unit(text: str) -> str | None:
    """`abcabcab` → `abc`; None when nothing repeats at least twice."""
    for size in range(1, len(text) // 2 + 1):
        if (text[:size] * (len(text) // size + 1))[: len(text)] == text:
            return text[:size]
    return None


@cache
def common_passwords() -> frozenset[str]:
    """The shipped block list, casefolded: words and patterns that every published list of leaked passwords begins with."""
    text = files("secure_llm_proxy.identity").joinpath("common_passwords.txt").read_text(encoding="utf-8")
    return frozenset(line.casefold() for line in text.splitlines() if line and not line.startswith("#"))
