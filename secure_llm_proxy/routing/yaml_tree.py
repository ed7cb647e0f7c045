"""YAML as plain values, each with the line where it stands.

Scalars are text, whole numbers, decimals, true and false, and nothing: what YAML 1.2 calls the core schema, without
YAML 1.1's surprises (`no` is text, and so is 2024-10-21). A key may stand once in a mapping. Source: YAML 1.2.2 §10.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from secure_llm_proxy.foundation.strict_json import JsonValue

Path = tuple[str | int, ...]
_NODES_MAX = 100_000


class YamlMistake(Exception):
    """The text is no YAML that we take. `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


@dataclass(slots=True)
class YamlTree:
    """`lines` by path; `repeated` are the paths and lines of keys that stand twice."""

    value: JsonValue = None
    lines: dict[Path, int] = field(default_factory=dict)
    repeated: list[tuple[Path, int]] = field(default_factory=list)
    nodes: int = 0


class _Loader(yaml.SafeLoader):
    """The safe loader with the core schema's scalars."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def read_yaml(text: str) -> YamlTree:
    """The one document in `text`. Raises `YamlMistake`, which repeats nothing of the text but what is wrong about it."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlMistake(mark.line + 1 if mark else 1, f"is no YAML: {error.problem}") from None
    except yaml.YAMLError:
        raise YamlMistake(1, "is no YAML: a character that no text file holds") from None
    except RecursionError:
        raise YamlMistake(1, "is nested too deeply") from None
    tree = YamlTree()
    if root is not None:
        tree.value = _value_of(root, (), tree, ())
    return tree


def _value_of(node: yaml.Node, path: Path, tree: YamlTree, inside: tuple[int, ...]) -> JsonValue:
    line = node.start_mark.line + 1
    tree.lines.setdefault(path, line)
    tree.nodes += 1
    if tree.nodes > _NODES_MAX or id(node) in inside:
        raise YamlMistake(line, "grows without end by its aliases (*name)")
    inside = (*inside, id(node))
    if isinstance(node, yaml.MappingNode):
        found: dict[str, JsonValue] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlMistake(key_node.start_mark.line + 1, "has a key that is no text")
            key = str(key_node.value)
            below = (*path, key)
            if key in found:
                tree.repeated.append((below, key_node.start_mark.line + 1))
                continue
            tree.lines[below] = key_node.start_mark.line + 1
            found[key] = _value_of(value_node, below, tree, inside)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value_of(item, (*path, at), tree, inside) for at, item in enumerate(node.value)]
    return _scalar(node, line)


def _scalar(node: yaml.Node, line: int) -> JsonValue:
    text = str(node.value)
    match node.tag.rpartition(":")[2]:
        case "str":
            return text
        case "bool":
            return text.lower() == "true"
        case "null":
            return None
        case "int" | "float" as kind:
            try:
                return int(text) if kind == "int" else float(text)
            except ValueError:
                raise YamlMistake(line, "has a number that is none, or too long") from None
        case _:
            raise YamlMistake(line, "has a value with a tag (!name), and none is taken here")
