"""What a request may look like, said field by field, and where one differs from that.

Providers document their requests as trees of named fields. A shape is such a tree; `misfit` walks a request along it and
returns the first place where it differs, or None. Nothing that the documentation does not name is let through: a translator
that writes a field of another provider's format is noticed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """`kind` says what is wrong at `path`: a field nobody knows, one that is missing, a wrong JSON type, a wrong value."""

    path: Path
    kind: Literal["unknown", "missing", "type", "value"]
    expected: str

    @property
    def dotted(self) -> str:
        """`messages.0.content`, as pydantic writes it."""
        return ".".join(str(step) for step in self.path)

    @property
    def indexed(self) -> str:
        """`messages[0].content`, as OpenAI writes it."""
        said = ""
        for step in self.path:
            said += f"[{step}]" if isinstance(step, int) else f".{step}" if said else step
        return said


class Shape(Protocol):
    def misfit(self, value: object, path: Path) -> Misfit | None:
        """The first difference in document order."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """One JSON type. Numbers: an integer is one, a truth value is none."""

    name: Literal["string", "integer", "number", "boolean", "object", "array", "null", "any"]
    minimum: float | None = None
    maximum: float | None = None

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if self.name == "any":
            return None
        if self.name not in json_types(value):
            return Misfit(path, "type", self.name)
        if isinstance(value, int | float) and self.minimum is not None and value < self.minimum:
            return Misfit(path, "value", f"at least {self.minimum}")
        if isinstance(value, int | float) and self.maximum is not None and value > self.maximum:
            return Misfit(path, "value", f"at most {self.maximum}")
        return None


@dataclass(frozen=True, slots=True)
class Name:
    """A string of at most `longest` characters that matches `pattern`."""

    pattern: str = ".*"
    longest: int = 64

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, str):
            return Misfit(path, "type", "string")
        if len(value) > self.longest:
            return Misfit(path, "value", f"at most {self.longest} characters")
        return None if re.fullmatch(self.pattern, value, re.DOTALL) else Misfit(path, "value", self.pattern)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these words."""

    words: tuple[str, ...]

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, str):
            return Misfit(path, "type", "string")
        return None if value in self.words else Misfit(path, "value", " or ".join(self.words))


@dataclass(frozen=True, slots=True)
class ListOf:
    item: Shape
    least: int = 0

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, list):
            return Misfit(path, "type", "array")
        if len(value) < self.least:
            return Misfit(path, "value", f"at least {self.least} item")
        return next((found for at, item in enumerate(value) if (found := self.item.misfit(item, (*path, at)))), None)


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose names are free and whose values are alike."""

    item: Shape

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, dict):
            return Misfit(path, "type", "object")
        return next((found for name, item in value.items() if (found := self.item.misfit(item, (*path, name)))), None)


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with these fields and no others."""

    required: Mapping[str, Shape] = field(default_factory=dict)
    optional: Mapping[str, Shape] = field(default_factory=dict)

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, dict):
            return Misfit(path, "type", "object")
        for name in self.required:
            if name not in value:
                return Misfit((*path, name), "missing", "a value")
        for name, item in value.items():
            shape = self.required.get(name) or self.optional.get(name)
            if shape is None:
                return Misfit((*path, name), "unknown", "nothing")
            if found := shape.misfit(item, (*path, name)):
                return found
        return None


@dataclass(frozen=True, slots=True)
class Tagged:
    """An object whose field `tag` says which shape it has."""

    tag: str
    shapes: Mapping[str, Shape]

    def misfit(self, value: object, path: Path) -> Misfit | None:
        if not isinstance(value, dict):
            return Misfit(path, "type", "object")
        if self.tag not in value:
            return Misfit((*path, self.tag), "missing", "a value")
        shape = self.shapes.get(value[self.tag]) if isinstance(value[self.tag], str) else None
        return shape.misfit(value, path) if shape else Misfit((*path, self.tag), "value", " or ".join(self.shapes))


@dataclass(frozen=True, slots=True)
class Either:
    """Fits when one of the shapes does. Told apart by JSON type, so that the misfit named is the one that was meant."""

    shapes: tuple[Shape, ...]

    def misfit(self, value: object, path: Path) -> Misfit | None:
        misfits = []
        for shape in self.shapes:
            found = shape.misfit(value, path)
            if found is None:
                return None
            misfits.append(found)
        return max(misfits, key=lambda found: (len(found.path), found.kind != "type"))


STRING = Kind("string")
INTEGER = Kind("integer")
COUNT = Kind("integer", minimum=0)
NUMBER = Kind("number")
BOOLEAN = Kind("boolean")
OBJECT = Kind("object")
NULL = Kind("null")
ANY = Kind("any")


def words(*allowed: str) -> OneOf:
    return OneOf(allowed)


def either(*shapes: Shape) -> Either:
    return Either(shapes)


def nullable(shape: Shape) -> Either:
    return Either((shape, NULL))


def fields(required: Mapping[str, Shape] | None = None, /, **optional: Shape) -> Fields:
    """`fields({"url": STRING}, detail=STRING)`: `url` must be there, `detail` may."""
    return Fields(required or {}, optional)


def json_types(value: object) -> tuple[str, ...]:
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case int():
            return ("integer", "number")
        case float():
            return ("integer", "number") if value.is_integer() else ("number",)
        case str():
            return ("string",)
        case list():
            return ("array",)
        case _:
            return ("object",)


@dataclass(frozen=True, slots=True)
class View:
    """Reads a request that has fitted its shape: what is missing reads as None, empty or false."""

    value: object = None

    def __getitem__(self, name: str) -> View:
        return View(self.value.get(name)) if isinstance(self.value, dict) else View()

    def __iter__(self) -> Iterator[View]:
        return iter([View(item) for item in self.value] if isinstance(self.value, list) else [])

    def __bool__(self) -> bool:
        return bool(self.value)

    @property
    def text(self) -> str:
        return self.value if isinstance(self.value, str) else ""

    @property
    def word(self) -> str | None:
        return self.value if isinstance(self.value, str) else None

    @property
    def number(self) -> int | None:
        return int(self.value) if isinstance(self.value, int | float) and not isinstance(self.value, bool) else None

    @property
    def flag(self) -> bool | None:
        return self.value if isinstance(self.value, bool) else None

    @property
    def names(self) -> dict[str, object]:
        return self.value if isinstance(self.value, dict) else {}

    @property
    def texts(self) -> list[str]:
        """A text, or a list of them, as a list."""
        return [self.value] if isinstance(self.value, str) else [item.text for item in self]
