"""Rules for what people and things may be called: usernames, e-mail addresses, names of keys and projects, roles."""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum

from secure_llm_proxy.foundation.errors import OperatorError

# The first organisation and its project: everybody's, until an operator makes others. Their ids sort before all others.
DEFAULT_ORGANISATION_ID = "org_00000000000000000000000000"
DEFAULT_PROJECT_ID = "prj_00000000000000000000000000"
USERNAME_LENGTH_MAX = 64
NAME_LENGTH_MAX = 100
_NORMALISED_LENGTH_MAX = 200
_EMAIL_LENGTH_MAX = 254
_SHOWN_LENGTH_MAX = 80
_EMAIL = re.compile(r"[^\s@<>()\[\]\\,;:\"]{1,64}@[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)*")
_USERNAME_MARKS = frozenset("._-@+")
_USER_ID = re.compile(r"usr_[0-9A-HJKMNP-TV-Z]{26}", re.ASCII)
# Printable by Unicode's categories, and yet nothing is seen (Default_Ignorable_Code_Point, Unicode 16): two names would
# look alike.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    VIEWER = "viewer"
    MEMBER = "member"


ORIGIN_ROLES = {"user": Role.MEMBER, "readonly": Role.VIEWER}


def role_named(text: str) -> Role:
    """A role by its name or the origin's (`user` is member, `readonly` is viewer)."""
    folded = text.strip().casefold()
    if folded in ORIGIN_ROLES:
        return ORIGIN_ROLES[folded]
    try:
        return Role(folded)
    except ValueError:
        raise OperatorError(f"There is no role {shown(text)}; use one of: {', '.join(Role)}.") from None


def normalised_username(username: str) -> str:
    """What makes two usernames the same: NFKC, casefolded, without space around it (Unicode 16, toNFKC_Casefold).

    Done before anything is looked up or counted, so that a lock can't be passed by writing the name otherwise
    (OpenBao GO-2025-3855).
    """
    folded = unicodedata.normalize("NFKC", username.strip()).casefold()
    return unicodedata.normalize("NFKC", folded).strip()


def login_person(username: str) -> str:
    """Who somebody claims to be that can't be told from a stranger yet: what `pseudonym` takes for a typed username."""
    return "login:" + normalised_username(username)


def checked_username(username: str) -> tuple[str, str]:
    """The username to show and its normalised form. Raises `OperatorError` with the rule that it breaks."""
    shown_name = username.strip()
    normalised = normalised_username(username)
    if not 1 <= len(shown_name) <= USERNAME_LENGTH_MAX or len(normalised) > USERNAME_LENGTH_MAX:
        raise OperatorError(f"A username has 1 to {USERNAME_LENGTH_MAX} characters; choose another.")
    if is_user_id(shown_name):
        raise OperatorError("A username must not have the form of a user's id; choose another.")
    # Both forms: what is shown must not hide a character that the compared form has lost, and the other way round.
    for character in shown_name + normalised:
        known = character.isalnum() or character in _USERNAME_MARKS or unicodedata.category(character) in {"Mn", "Mc"}
        if not known or _UNSEEN.match(character) is not None:
            raise OperatorError(
                f"A username may hold letters, digits and . _ - @ + only, not U+{ord(character):04X}; choose another."
            )
    if not normalised or not normalised[0].isalnum():
        raise OperatorError("A username begins with a letter or a digit; choose another.")
    return shown_name, normalised


def checked_email(email: str) -> str:
    """The address without space around it. Only its syntax is judged: whether mail arrives, only mail can tell."""
    address = unicodedata.normalize("NFC", email.strip())
    if len(address) > _EMAIL_LENGTH_MAX or not address.isprintable() or _EMAIL.fullmatch(address) is None:
        raise OperatorError(f"{shown(email)} is not an e-mail address; give one like name@example.org.")
    return address


def checked_name(name: str, *, of: str = "key") -> str:
    """The name of a key, project or organisation: 1 to 100 characters that can be seen, without space around them."""
    text = unicodedata.normalize("NFC", name.strip())
    if not 1 <= len(text) <= NAME_LENGTH_MAX or not text.isprintable() or _UNSEEN.search(text) is not None:
        raise OperatorError(f"The name of a {of} has 1 to {NAME_LENGTH_MAX} printable characters; give another.")
    return text


def normalised_name(name: str) -> str:
    """What makes two names of projects or organisations the same: as of usernames, and any white space is one blank."""
    return " ".join(normalised_username(name).split())


def checked_unique_name(name: str, *, of: str) -> tuple[str, str]:
    """The name to show and its normalised form, as `checked_name` judges it."""
    text = checked_name(name, of=of)
    normalised = normalised_name(text)
    if not 1 <= len(normalised) <= _NORMALISED_LENGTH_MAX:
        raise OperatorError(f"The name of a {of} has 1 to {NAME_LENGTH_MAX} printable characters; give another.")
    return text, normalised


def is_user_id(text: str) -> bool:
    return _USER_ID.fullmatch(text) is not None


def default_project_of(organisation_id: str) -> str:
    """The id of an organisation's first project, which is made with it and open to all of its users."""
    return "prj_" + organisation_id.partition("_")[2]


def shown(text: str) -> str:
    """`text` in quotes for an error sentence: cut when long, nothing in it can move a terminal's cursor."""
    cut = text if len(text) <= _SHOWN_LENGTH_MAX else text[: _SHOWN_LENGTH_MAX - 1] + "…"
    return (
        '"' + "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in cut) + '"'
    )
