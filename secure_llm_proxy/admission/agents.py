"""Which programs the User-Agent header names, and whether a list names one of them.

A User-Agent is no proof of anything: this keeps honest tools out where an operator wants that, and stops no attacker.
"""

from __future__ import annotations

from collections.abc import Iterable

from secure_llm_proxy.foundation.errors import OperatorError

AGENT_CHARACTERS_MAX = 4096
"""A longer header is not searched; `AgentList.match` says so by raising `AgentTooLong`."""

_ENTRY_CHARACTERS_MAX = 128
_REMEMBERED_MAX = 512
_REMEMBERED_CHARACTERS_MAX = 256
_TOKEN_CHARACTERS = frozenset("!#$%&'*+-.^_`|~/0123456789abcdefghijklmnopqrstuvwxyz")
_SEPARATED = str.maketrans({chr(code): " " for code in range(256) if chr(code) not in _TOKEN_CHARACTERS})


class AgentTooLong(Exception):
    """The header is longer than `AGENT_CHARACTERS_MAX`."""


class AgentList:
    """Case-insensitive globs (`*` any run, `?` one character) over the product tokens of a User-Agent.

    A glob must cover the whole name of a product: `curl` matches `curl/8.5`, `bot` not `chatbot/1.0`, `*bot` does. With
    a slash in it, it must cover name and version: `curl/7.*`. Products inside comments count, like Googlebot's. A
    header without any product is one empty name, which only globs of `*` match.
    """

    __slots__ = ("_globs", "_literals", "_remembered")

    def __init__(self, entries: Iterable[str], *, setting: str = "") -> None:
        self._literals: dict[str, str] = {}
        self._globs: list[tuple[str, str]] = []
        self._remembered: dict[str, str | None] = {}
        where = f" in {setting}" if setting else ""
        for entry in entries:
            pattern = _lower(entry.strip())
            if (
                not pattern
                or len(pattern) > _ENTRY_CHARACTERS_MAX
                or not _TOKEN_CHARACTERS.issuperset(pattern.replace("?", ""))
            ):
                raise OperatorError(
                    f"{entry!r}{where} is not a glob of a product name such as curl, python-requests or *bot "
                    f"(at most {_ENTRY_CHARACTERS_MAX} characters, no spaces)."
                )
            if "*" in pattern or "?" in pattern:
                self._globs.append((pattern, entry.strip()))
            else:
                self._literals.setdefault(pattern, entry.strip())

    def __len__(self) -> int:
        return len(self._literals) + len(self._globs)

    def match(self, user_agent: str) -> str | None:
        """The entry that matches a product of the header, as the operator wrote it; None when there is none.

        Raises `AgentTooLong` rather than leave a part unread. Time: at most the header's length times the globs'.
        """
        if not self._literals and not self._globs:
            return None
        if len(user_agent) > AGENT_CHARACTERS_MAX:
            raise AgentTooLong
        try:
            return self._remembered[user_agent]
        except KeyError:
            entry = self._search(user_agent)
        if len(user_agent) <= _REMEMBERED_CHARACTERS_MAX:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[user_agent] = entry
        return entry

    def _search(self, user_agent: str) -> str | None:
        for product in products(user_agent):
            name = product.partition("/")[0]
            entry = self._literals.get(name) or self._literals.get(product)
            if entry is not None:
                return entry
            for pattern, written in self._globs:
                if glob_matches(pattern, product if "/" in pattern else name):
                    return written
        return None


def products(user_agent: str) -> list[str]:
    """The product tokens in lower case, `name` or `name/version`, those in comments too; [""] when there is none.

    What isn't a token character (RFC 9110 §5.6.2) or the slash separates, so parentheses and semicolons do.
    """
    text = _lower(user_agent).translate(_SEPARATED)
    if not text.isascii():
        text = "".join([character if character.isascii() else " " for character in text])
    return [word for word in text.split(" ") if word and not word.startswith("/")] or [""]


def glob_matches(pattern: str, text: str) -> bool:
    """Whether `pattern` covers all of `text`, in len(pattern) x len(text) steps: it goes back to the last `*` only."""
    at = start = 0
    star = -1
    mark = 0
    while at < len(text):
        if start < len(pattern) and pattern[start] == "*":
            star, mark = start, at
            start += 1
        elif start < len(pattern) and pattern[start] in {"?", text[at]}:
            at += 1
            start += 1
        elif star >= 0:
            mark += 1
            at, start = mark, star + 1
        else:
            return False
    return not pattern[start:].strip("*")


def _lower(text: str) -> str:
    """ASCII lower case only: str.lower() turns the Kelvin sign into k, a second spelling of a name."""
    return text.lower() if text.isascii() else "".join([c.lower() if c.isascii() else c for c in text])
