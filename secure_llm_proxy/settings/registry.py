"""The one description of a setting: its name, default, meaning. Sections, `.env.example`, docs and checks read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people know it.

    `name` is the environment variable, `synonyms` other names that mean the same (the origins'), `production` the
    default in the production profile where it differs, `secret` keeps its value out of every output.
    """

    name: str
    section: str
    field: str
    default: object
    production: object
    description: str
    synonyms: tuple[str, ...]
    secret: bool
    shown_default: str


class Section(BaseModel):
    """A room's settings: frozen, built by field name. Unknown field names are a defect."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=False, arbitrary_types_allowed=True, allow_inf_nan=False
    )


_SAME = object()


def setting(
    name: str,
    default: object,
    description: str,
    *,
    production: object = _SAME,
    synonyms: tuple[str, ...] = (),
    secret: bool = False,
    shown_default: str | None = None,
    **constraints: Any,
) -> Any:
    """A section's field that is read from the environment variable `name` (or a synonym of it)."""
    extra: dict[str, Any] = {
        "name": name,
        "synonyms": list(synonyms),
        "secret": secret,
        "shown_default": shown_default,
    }
    field: Any = Field(default=default, description=description, json_schema_extra={"setting": extra}, **constraints)
    if production is not _SAME:
        extra["production"] = production
    return field


def settings_of(section: type[Section]) -> list[Setting]:
    """Every setting of a section, in the order in which its fields stand."""
    return [
        described
        for field, info in section.model_fields.items()
        if (described := _describe(section.__name__.removesuffix("Settings").lower(), field, info)) is not None
    ]


def _describe(section: str, field: str, info: FieldInfo) -> Setting | None:
    extra = info.json_schema_extra
    if not isinstance(extra, dict) or "setting" not in extra:
        return None
    told: Any = extra["setting"]
    default = info.default
    shown = told["shown_default"]
    return Setting(
        name=told["name"],
        section=section,
        field=field,
        default=default,
        production=told.get("production", default),
        description=info.description or "",
        synonyms=tuple(told["synonyms"]),
        secret=told["secret"],
        shown_default=shown if shown is not None else as_text(default),
    )


def as_text(value: object) -> str:
    """A default as one would write it in `.env`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(str(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
