"""`config/models.yaml`: providers, models and routes, judged as a whole before any of it is used.

Everything that is wrong is told at once, with its path and line in the file and what to do. Keys stand in it by reference
only, and nothing of what stands in their place is ever repeated. docs/providers.md describes the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from secure_llm_proxy.foundation.errors import OperatorError
from secure_llm_proxy.foundation.strict_json import JsonValue
from secure_llm_proxy.routing.definitions import (
    COMPATIBLE,
    azure_place,
    environment_providers,
    merged,
    provider_of_kind,
    several,
)
from secure_llm_proxy.routing.models import ModelDefinition, ModelRoute, ModelsFile, Strategy, TagRules
from secure_llm_proxy.routing.yaml_tree import Path as YamlPath
from secure_llm_proxy.routing.yaml_tree import YamlMistake, YamlTree, read_yaml
from secure_llm_proxy.settings import UpstreamSettings
from secure_llm_proxy.settings.loading import credential_file, crosses_in_clear, known_settings
from secure_llm_proxy.vocabulary.providers import Capability, Patience, ProviderDefinition, provider_kinds
from secure_llm_proxy.vocabulary.wire_formats import WireFormat

_BYTES_MAX = 1_048_576
_KEY_BYTES_MAX = 8192
_PROVIDER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MODEL_NAME = re.compile(r"[!-~]{1,256}")
_TAG = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FORMAT_PATH = re.compile(r"/[!-~]*")
_REFERENCE = re.compile(r"(env|file|credential):(.+)")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+")
_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9._-]+")
_AZURE_KINDS = frozenset({"azure", "azure_deployments"})
_API_VERSION = re.compile(r"v1|preview|\d{4}-\d{2}-\d{2}(-preview)?")

_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_Texts = str | list[str]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class _TimeoutsShape(_Shape):
    connect_s: _Seconds | None = None
    first_byte_s: _Seconds | None = None
    idle_s: _Seconds | None = None
    total_s: _Seconds | None = None


class _ProviderShape(_Shape):
    kind: str | None = None
    base_url: str | None = None
    api_keys: _Texts | None = None
    api_version: str | None = None
    timeouts: _TimeoutsShape = _TimeoutsShape()
    tags: dict[str, str] = {}
    formats: dict[str, str] | None = None
    usage_in_streams: bool = True
    models: list[str] = []


class _RouteShape(_Shape):
    provider: str
    model: str
    weight: Annotated[int, Field(ge=1, le=1000)] | None = None


class _ModelShape(_Shape):
    routes: Annotated[list[_RouteShape], Field(min_length=1)]
    aliases: list[str] = []
    strategy: Literal["ordered", "weighted", "least-busy"] = "ordered"
    fallbacks: list[str] = []
    context_fallbacks: list[str] = []
    content_policy_fallbacks: list[str] = []
    capabilities: list[str] | None = None
    context_tokens: Annotated[int, Field(ge=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    require: dict[str, _Texts] = {}
    forbid: dict[str, _Texts] = {}


class _FileShape(_Shape):
    providers: dict[str, _ProviderShape] = {}
    models: dict[str, _ModelShape] = {}
    stored_providers: list[str] = []


@dataclass(frozen=True, slots=True)
class _Mistake:
    path: YamlPath
    problem: str


def read_models_file(settings: UpstreamSettings, path: Path, *, production: bool) -> ModelsFile:
    """The file as it stands now.

    Raises `OperatorError` with every mistake. In production no key may cross a network in clear.
    """
    tree = _read(path)
    reading = _Reading(settings, production=production)
    made = reading.file(tree)
    if reading.mistakes or tree.repeated:
        raise OperatorError(_told(path, tree, reading.mistakes))
    assert made is not None
    return made


def _read(path: Path) -> YamlTree:
    try:
        with path.open("rb") as opened:
            content = opened.read(_BYTES_MAX + 1)
    except OSError as error:
        raise OperatorError(f"MODELS_FILE {path} can't be read: {error.strerror}.") from None
    if len(content) > _BYTES_MAX:
        raise OperatorError(f"MODELS_FILE {path} is larger than {_BYTES_MAX} bytes.")
    try:
        return read_yaml(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise OperatorError(f"MODELS_FILE {path} is no UTF-8 text.") from None
    except YamlMistake as mistake:
        raise OperatorError(f"MODELS_FILE {path}, line {mistake.line}: {mistake.problem}.") from None


class _Reading:
    """One reading of the file; `mistakes` fill up on the way."""

    def __init__(self, settings: UpstreamSettings, *, production: bool) -> None:
        self.mistakes: list[_Mistake] = []
        self._settings = settings
        self._production = production

    def file(self, tree: YamlTree) -> ModelsFile | None:
        value = _without_nothing(tree.value)
        try:
            shape = _FileShape.model_validate(value)
        except ValidationError as error:
            for item in error.errors(include_url=False, include_input=False, include_context=False):
                self._say(_path_of(item["loc"]), _words(item["type"], item["msg"], item["loc"]))
            return None
        providers = [
            provider for name, told in shape.providers.items() if (provider := self._provider(name, told)) is not None
        ]
        self._check_names(shape)
        known = merged(providers, environment_providers(self._settings))
        names = {*shape.providers, *(definition.name for definition in known), *shape.stored_providers}
        models = [self._model(name, told, shape, names) for name, told in shape.models.items()]
        made = ModelsFile(tuple(providers), tuple(models), frozenset(shape.stored_providers))
        if not self.mistakes:
            self._check_usefulness(made, {definition.name: definition.tags for definition in known})
        return made

    def _say(self, path: YamlPath, problem: str) -> None:
        self.mistakes.append(_Mistake(path, problem))

    def _check_names(self, shape: _FileShape) -> None:
        for at, name in enumerate(shape.stored_providers):
            if not _PROVIDER_NAME.fullmatch(name):
                self._say(("stored_providers", at), "is no name of a provider")
        taken: dict[str, str] = {name: name for name in shape.models}
        for name, model in shape.models.items():
            if not _MODEL_NAME.fullmatch(name):
                self._say(("models", name), "must be 1 to 256 visible ASCII characters without spaces")
            for at, alias in enumerate(model.aliases):
                path = ("models", name, "aliases", at)
                if not _MODEL_NAME.fullmatch(alias):
                    self._say(path, "must be 1 to 256 visible ASCII characters without spaces")
                elif alias in taken:
                    self._say(path, f"{alias} means the model {taken[alias]} already")
                taken.setdefault(alias, name)

    # --- providers ---

    def _provider(self, name: str, told: _ProviderShape) -> ProviderDefinition | None:
        path: YamlPath = ("providers", name)
        before = len(self.mistakes)
        if not _PROVIDER_NAME.fullmatch(name):
            self._say(path, "must be 1 to 64 small letters, digits, dots, _ and -, a letter or digit first")
        kinds = provider_kinds()
        kind = told.kind or name
        if kind not in kinds:
            where = (*path, "kind")
            if told.kind is None:
                self._say(where, f"is missing, since {name} is no kind of provider; one of {', '.join(kinds)}")
            else:
                self._say(where, f"{kind} is no kind of provider{_near(kind, kinds)}; one of {', '.join(kinds)}")
            return None
        if told.api_version is not None:
            if kind not in _AZURE_KINDS:
                self._say((*path, "api_version"), f"is for Azure OpenAI only, and {name} is of kind {kind}")
            elif not _API_VERSION.fullmatch(told.api_version):
                self._say((*path, "api_version"), "must be v1, preview or a date like 2024-10-21")
        usual = self._usual(kind)
        base_url = (told.base_url or usual.base_url).rstrip("/")
        if not base_url:
            self._say((*path, "base_url"), f"is missing: a provider of kind {kind} has no address of its own")
        query = usual.query
        if told.base_url is not None or told.api_version is not None:
            kind, base_url, query = (
                azure_place(base_url, told.api_version) if kind in _AZURE_KINDS else (kind, base_url, "")
            )
        elif kind == "azure":
            kind = usual.kind
        keys = self._keys(path, told.api_keys)
        if told.api_keys is None and told.base_url is None:
            # A variable's key belongs to its kind's own address and goes nowhere else.
            keys = usual.keys
            if not keys and kinds[kind].key_variables:
                self._say(
                    (*path, "api_keys"), f"is missing; write env:NAME, or set {' or '.join(kinds[kind].key_variables)}"
                )
        if self._production and keys and crosses_in_clear(base_url):
            self._say((*path, "base_url"), "is http, and the key would cross the network in clear; use https")
        self._check_tag_values(path, told)
        self._check_models(path, told)
        formats = self._formats(path, told.formats)
        if len(self.mistakes) > before:
            return None
        return ProviderDefinition(
            name=name,
            kind=kind,
            base_url=base_url,
            keys=keys,
            query=query,
            models=tuple(dict.fromkeys(told.models)),
            patience=Patience(**told.timeouts.model_dump()),
            tags=dict(told.tags),
            formats=formats,
            usage_in_streams=told.usage_in_streams,
            source="file",
        )

    def _usual(self, kind: str) -> ProviderDefinition:
        """What the environment says of a provider of this kind."""
        if kind == COMPATIBLE:
            return ProviderDefinition(kind, kind, "")
        of_kind = "azure" if kind in _AZURE_KINDS else kind
        secret = self._settings.keys_by_kind().get(of_kind)
        return provider_of_kind(self._settings, of_kind, several(secret) if secret is not None else ())

    def _keys(self, path: YamlPath, told: _Texts | None) -> tuple[SecretStr, ...]:
        if told is None:
            return ()
        keys: list[SecretStr] = []
        for at, reference in enumerate([told] if isinstance(told, str) else told):
            where = (*path, "api_keys") if isinstance(told, str) else (*path, "api_keys", at)
            found = _REFERENCE.fullmatch(reference)
            if found is None:
                self._say(
                    where, "must say where the key is: env:NAME, file:/path or credential:NAME, never the key itself"
                )
            else:
                keys += self._referred(where, found[1], found[2])
        return tuple(keys)

    def _referred(self, where: YamlPath, place: str, name: str) -> tuple[SecretStr, ...]:
        match place:
            case "env":
                return self._from_environment(where, name)
            case "credential":
                directory = self._settings.credentials_directory
                if not _CREDENTIAL_NAME.fullmatch(name):
                    self._say(where, "must name a file of the credentials directory, e.g. credential:openai_api_key")
                elif directory is None:
                    self._say(where, "there is no CREDENTIALS_DIRECTORY here; systemd sets it for LoadCredential=")
                else:
                    return self._from_file(where, credential_file(directory, name))
            case _:
                if not name.startswith("/"):
                    self._say(where, "must be an absolute path, e.g. file:/etc/secure_llm_proxy/openai.key")
                else:
                    return self._from_file(where, Path(name))
        return ()

    def _from_environment(self, where: YamlPath, name: str) -> tuple[SecretStr, ...]:
        secret = self._settings.referred.get(name)
        if secret is not None:
            return several(secret)
        if not _ENVIRONMENT_NAME.fullmatch(name):
            self._say(where, "must name a variable, e.g. env:OPENAI_API_KEY")
        elif name in _own_names():
            self._say(where, f"{name} is a setting of this product and no provider's key")
        elif _USUAL_NAME.fullmatch(name):
            self._say(where, f"{name} is not set in the environment")
        else:
            # It may be the key itself.
            self._say(
                where, "what it names is not set in the environment; write the name of a variable, never the key itself"
            )
        return ()

    def _from_file(self, where: YamlPath, path: Path) -> tuple[SecretStr, ...]:
        try:
            with path.open("rb") as opened:
                content = opened.read(_KEY_BYTES_MAX + 1)
        except OSError as error:
            self._say(where, f"{path} can't be read: {error.strerror}")
            return ()
        if len(content) > _KEY_BYTES_MAX or not content.isascii() or not content.strip():
            self._say(where, f"{path} must hold a key in ASCII, at most {_KEY_BYTES_MAX} bytes, and nothing else")
            return ()
        return several(SecretStr(content.decode("ascii").strip()))

    def _formats(self, path: YamlPath, told: Mapping[str, str] | None) -> dict[WireFormat, str] | None:
        if told is None:
            return None
        known = [format_.value for format_ in WireFormat]
        found: dict[WireFormat, str] = {}
        for name, place in told.items():
            where = (*path, "formats", name)
            if name not in known:
                self._say(where, f"is no wire format{_near(name, known)}; one of {', '.join(known)}")
            elif not _FORMAT_PATH.fullmatch(place) or {".", ".."} & set(place.partition("?")[0].split("/")):
                self._say(where, "must be a path below base_url that begins with /")
            else:
                found[WireFormat(name)] = place
        if not told:
            self._say((*path, "formats"), "is empty; leave it out for the formats of its kind")
        return found

    def _check_tag_values(self, path: YamlPath, told: _ProviderShape) -> None:
        for name, value in told.tags.items():
            if not (_TAG.fullmatch(name) and _TAG.fullmatch(value)):
                self._say((*path, "tags", name), "must be name: value, each of 1 to 64 letters, digits, . _ -")

    def _check_models(self, path: YamlPath, told: _ProviderShape) -> None:
        for at, model in enumerate(told.models):
            if not _MODEL_NAME.fullmatch(model):
                self._say((*path, "models", at), "must be 1 to 256 visible ASCII characters without spaces")

    # --- models ---

    def _model(self, name: str, told: _ModelShape, shape: _FileShape, providers: Collection[str]) -> ModelDefinition:
        path: YamlPath = ("models", name)
        for at, route in enumerate(told.routes):
            if route.provider not in providers:
                self._say(
                    (*path, "routes", at, "provider"),
                    f"there is no provider {_short(route.provider)}{_near(route.provider, providers)}; one that is stored in"
                    " the database is named under stored_providers",
                )
            if not _MODEL_NAME.fullmatch(route.model):
                self._say((*path, "routes", at, "model"), "must be 1 to 256 visible ASCII characters without spaces")
            if route.weight is not None and told.strategy == "ordered":
                self._say((*path, "routes", at, "weight"), "has no effect in order; set strategy: weighted")
        for at, capability in enumerate(told.capabilities or ()):
            if capability not in _CAPABILITIES:
                self._say(
                    (*path, "capabilities", at),
                    f"is no capability{_near(capability, _CAPABILITIES)}; one of {', '.join(_CAPABILITIES)}",
                )
        return ModelDefinition(
            name=name,
            routes=tuple(ModelRoute(route.provider, route.model, route.weight or 1) for route in told.routes),
            aliases=tuple(told.aliases),
            strategy=Strategy(told.strategy),
            fallbacks=self._others(path, "fallbacks", told.fallbacks, shape),
            context_fallbacks=self._others(path, "context_fallbacks", told.context_fallbacks, shape),
            content_policy_fallbacks=self._others(
                path, "content_policy_fallbacks", told.content_policy_fallbacks, shape
            ),
            capabilities=None
            if told.capabilities is None
            else frozenset(Capability(name) for name in told.capabilities if name in _CAPABILITIES),
            context_tokens=told.context_tokens,
            max_output_tokens=told.max_output_tokens,
            require=self._rules(path, "require", told.require),
            forbid=self._rules(path, "forbid", told.forbid),
        )

    def _others(self, path: YamlPath, field: str, names: list[str], shape: _FileShape) -> tuple[str, ...]:
        """Models by their names, which may be aliases in the file."""
        by_alias = {alias: name for name, model in shape.models.items() for alias in model.aliases}
        found = []
        for at, name in enumerate(names):
            model = name if name in shape.models else by_alias.get(name)
            if model is None:
                self._say(
                    (*path, field, at),
                    f"there is no model {_short(name)} in this file{_near(name, [*shape.models, *by_alias])}",
                )
            elif model == path[1]:
                self._say((*path, field, at), "is this model itself")
            else:
                found.append(model)
        return tuple(dict.fromkeys(found))

    def _rules(self, path: YamlPath, field: str, told: Mapping[str, _Texts]) -> TagRules:
        rules: dict[str, frozenset[str]] = {}
        for name, values in told.items():
            several_values = [values] if isinstance(values, str) else values
            if not (_TAG.fullmatch(name) and several_values and all(_TAG.fullmatch(value) for value in several_values)):
                self._say(
                    (*path, field, name), "must be name: value or name: [value, …], of 1 to 64 letters, digits, . _ -"
                )
            rules[name] = frozenset(several_values)
        return rules

    def _check_usefulness(self, made: ModelsFile, tags: Mapping[str, Mapping[str, str]]) -> None:
        """A route or fallback that could never be taken is no fallback, though somebody counts on it."""
        models = {model.name: model for model in made.models}
        for model in made.models:
            path: YamlPath = ("models", model.name)
            for at, route in enumerate(model.routes):
                if route.provider in tags and not model.allows(tags[route.provider]):
                    self._say(
                        (*path, "routes", at),
                        f"provider {route.provider} has not the tags that this model's require and forbid ask for",
                    )
            for at, name in enumerate(model.context_fallbacks):
                tokens = models[name].context_tokens
                if tokens is not None and model.context_tokens is not None and tokens <= model.context_tokens:
                    self._say((*path, "context_fallbacks", at), f"{name} takes no longer conversations than this model")
            for field in ("fallbacks", "context_fallbacks", "content_policy_fallbacks"):
                for at, name in enumerate(getattr(model, field)):
                    known = [route.provider for route in models[name].routes if route.provider in tags]
                    if len(known) == len(models[name].routes) and not any(model.allows(tags[p]) for p in known):
                        self._say(
                            (*path, field, at),
                            f"no provider of {name} has the tags that this model's require and forbid ask for",
                        )


_CAPABILITIES = tuple(capability.value for capability in Capability)
_FIELDS: Mapping[tuple[str, ...], type[BaseModel]] = {
    (): _FileShape,
    ("providers", "*"): _ProviderShape,
    ("providers", "*", "timeouts"): _TimeoutsShape,
    ("models", "*"): _ModelShape,
    ("models", "*", "routes", "*"): _RouteShape,
}
_SAID: Mapping[str, str] = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes if it looks like a number",
    "int_type": "must be a whole number",
    "float_type": "must be a number of seconds",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names",
    "model_type": "must be a mapping of fields",
    "too_short": "must name at least one",
}


def _own_names() -> frozenset[str]:
    return frozenset(name for setting in known_settings() for name in (setting.name, *setting.synonyms))


def _without_nothing(value: JsonValue) -> JsonValue:
    """A name without a value counts as not given; a provider without one has the fields of its kind."""
    if not isinstance(value, dict):
        return {} if value is None else value
    told: dict[str, JsonValue] = {}
    for name, item in value.items():
        if isinstance(item, dict) and name == "providers":
            told[name] = {each: {} if fields is None else _pruned(fields) for each, fields in item.items()}
        elif item is not None:
            told[name] = _pruned(item)
    return told


def _pruned(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {name: _pruned(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value


def _path_of(location: tuple[str | int, ...]) -> YamlPath:
    """pydantic adds the branch of a union that it tried."""
    return tuple(part for part in location if part not in {"str", "list[str]"})


def _words(kind: str, message: str, location: tuple[str | int, ...]) -> str:
    if kind == "extra_forbidden":
        level = tuple(_level(location[:-1]))
        fields = list(_FIELDS[level].model_fields) if level in _FIELDS else []
        return f"is no field here{_near(str(location[-1]), fields)}; known are {', '.join(fields)}"
    return _SAID.get(kind) or (message[:1].lower() + message[1:]).replace("input should be", "must be")


def _level(location: tuple[str | int, ...]) -> Iterator[str]:
    for at, part in enumerate(location):
        yield "*" if at % 2 else str(part)


def _near(name: str, known: Collection[str]) -> str:
    found = get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _short(name: str) -> str:
    return name[:64].encode("unicode_escape").decode("ascii")


def _told(path: Path, tree: YamlTree, mistakes: list[_Mistake]) -> str:
    lines = [(line, where, "stands here a second time; keep one of them") for where, line in tree.repeated]
    lines += [(_line_of(tree, mistake.path), mistake.path, mistake.problem) for mistake in mistakes]
    told = dict.fromkeys(
        f"line {line}: {_shown(where)} {problem}" for line, where, problem in sorted(lines, key=_first)
    )
    count = "1 mistake" if len(told) == 1 else f"{len(told)} mistakes"
    return f"MODELS_FILE {path} has {count}:\n" + "\n".join(f"      {line}" for line in told)


def _first(entry: tuple[int, YamlPath, str]) -> int:
    return entry[0]


def _line_of(tree: YamlTree, path: YamlPath) -> int:
    """Where it stands, or where what it is missing from stands."""
    while path not in tree.lines and path:
        path = path[:-1]
    return tree.lines.get(path, 1)


def _shown(path: YamlPath) -> str:
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in path)
    return shown.removeprefix(".") or "the file"
