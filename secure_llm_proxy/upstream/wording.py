"""The provider's words, made fit to be shown to a client: no key, no host, no control characters, not long."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonValue
    from secure_llm_proxy.upstream.endpoint import Endpoint

MESSAGE_CHARACTERS_MAX = 500
_REMOVED = "[removed]"
_PARAMETER = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
# control, format (zero width, direction), surrogate, private use, unassigned, line and paragraph separators
_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class Scrubber:
    """Removes what identifies the operator's account with the provider, in any case of letters."""

    __slots__ = ("_secrets",)

    def __init__(self, endpoint: Endpoint, *api_keys: str) -> None:
        scheme = "https" if endpoint.secure else "http"
        places = {
            f"{scheme}://{endpoint.authority}{endpoint.base_path}",
            f"{endpoint.host}:{endpoint.port}",
            endpoint.authority,
            endpoint.host,
        }
        # the longest first, so that no part of one is left when a shorter one matches within it; whole words, because
        # a host may be called "llm"
        longest_first = sorted(map(re.escape, places), key=len, reverse=True)
        pattern = rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])"
        for api_key in api_keys:
            pattern = f"{re.escape(api_key)}|{pattern}"
        self._secrets = re.compile(pattern, re.IGNORECASE)

    def message(self, value: JsonValue) -> str | None:
        """Return the showable text of a provider's message, None when there is none."""
        if not isinstance(value, str):
            return None
        # unshowable characters go first: they could hide a key from the search
        showable = "".join(
            [
                " " if character in "\t\r\n" else "" if unicodedata.category(character) in _UNSHOWABLE else character
                for character in value
            ]
        )
        return self._secrets.sub(_REMOVED, showable).strip()[:MESSAGE_CHARACTERS_MAX] or None

    def parameter(self, value: JsonValue) -> str | None:
        """Return `value` when it is the short name of a request parameter, else None."""
        if isinstance(value, str) and _PARAMETER.fullmatch(value) and not self._secrets.search(value):
            return value
        return None
