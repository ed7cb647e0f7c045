"""Is this secret a secret? Known placeholders and patterns are refused where it matters."""

from __future__ import annotations

_PLACEHOLDERS = (
    "changeme", "change-me", "change_me", "change this", "change-this", "change_this", "your-secret", "your_secret", "yoursecret",
    "secret-key", "secret_key", "secretkey", "supersecret", "super-secret", "default", "example", "placeholder",
    "password", "replace-me", "replace_me", "dev-key", "development", "insecure", "todo", "xxxxxxxx",
)  # fmt: skip
_LENGTH_MIN = 32
_DISTINCT_MIN = 10


def weakness_of(secret: str) -> str | None:
    """Why `secret` must not guard anything, as the end of a sentence; None when nothing speaks against it.

    At least 32 characters, 10 different ones, no known placeholder, no short pattern repeated.
    """
    if len(secret) < _LENGTH_MIN:
        return f"is only {len(secret)} characters long (at least {_LENGTH_MIN})"
    lowered = secret.lower()
    if any(word in lowered for word in _PLACEHOLDERS):
        return "is a placeholder from an example"
    if len(set(secret)) < _DISTINCT_MIN:
        return "holds too few different characters"
    if any(secret == (secret[:size] * len(secret))[: len(secret)] for size in range(1, len(secret) // 2 + 1)):
        return "repeats one pattern"
    return None
