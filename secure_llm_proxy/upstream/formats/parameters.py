"""What becomes of a client's parameters where a provider has no word for them: dropped and named, or refused. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secure_llm_proxy.upstream.formats.face import unsupported

if TYPE_CHECKING:
    from secure_llm_proxy.foundation.strict_json import JsonObject, JsonValue
    from secure_llm_proxy.vocabulary.conversation import OutputFormat
    from secure_llm_proxy.vocabulary.providers import Limit, ProviderKind

# Parameters without a field in the neutral model that ask for another answer, not for another way to it. Everything else
# that is unknown only tunes, or we would have to refuse whatever a new SDK sends.
_CHANGES_THE_ANSWER = frozenset(
    {
        "audio",
        "background",
        "best_of",
        "container",
        "conversation",
        "echo",
        "function_call",
        "functions",
        "mcp_servers",
        "previous_response_id",
        "prompt",
        "suffix",
        "web_search_options",
    }
)


class Losses:
    """Collects the names of what is left out, each once, in order."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def drop(self, name: str) -> None:
        """Leave out what only tuned: the client is told its name."""
        self._names[name] = None

    def drop_further(self, further: JsonObject) -> None:
        """All of the parameters that have no field of their own. Raises `InvalidRequest` for those that change the answer."""
        for name, value in further.items():
            if value is None:
                continue
            if name in _CHANGES_THE_ANSWER or (name == "modalities" and value != ["text"]):
                raise unsupported(name, "it has nothing of the kind.")
            self.drop(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)


def check_limit(kind: ProviderKind, limit: Limit, count: int, param: str) -> None:
    """Raises `InvalidRequest` when `param` holds more than this kind of provider takes."""
    most = kind.limits.get(limit)
    if most is not None and count > most:
        raise unsupported(param, f"it takes at most {most}.")


def described_schema(output: OutputFormat, lost: Losses) -> JsonObject:
    """The schema of an output with its name and description as the schema's own, where it has none and may have any."""
    schema = output.schema or {}
    told = {} if "$ref" in schema else said(title=output.name, description=output.description)
    for field, name in (("name", output.name), ("description", output.description)):
        known = "title" if field == "name" else field
        if name is not None and {**told, **schema}.get(known) != name:
            lost.drop(f"response_format.json_schema.{field}")
    return {**told, **schema}


def said(**fields: JsonValue) -> JsonObject:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
