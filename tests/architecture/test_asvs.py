"""docs/asvs.toml is complete and names only what exists: every requirement of ASVS 5.0.0 that applies, in one of three kinds."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from secure_llm_proxy.identity import ROLE_PERMISSIONS, Permission, Role

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "asvs.toml"
KINDS = ("tests", "reason", "open")

# The requirements that apply, by level; of level 3 those that the product commits itself to. Ranges within one section.
LEVELS: Final = {
    1: """
        1.2.1-5 1.3.2 2.1.1 2.2.1-2 2.3.1 3.2.1-2 3.3.1 3.4.1-2 3.5.1-3 4.1.1 5.2.1-2 5.3.1-2 6.1.1 6.2.1-8 6.3.1-2 6.4.1-2
        7.2.1-4 7.4.1-2 8.1.1 8.2.1-2 8.3.1 9.1.1-3 9.2.1 11.3.1-2 11.4.1 12.1.1 12.2.1-2 13.4.1 14.2.1 14.3.1 15.1.1 15.2.1
        15.3.1
    """,
    2: """
        1.1.1-2 1.2.9 1.3.3 1.3.5-7 1.3.10 1.5.2 2.1.2-3 2.2.3 2.3.2-4 2.4.1 3.3.2-4 3.4.3-6 3.5.4 3.7.1-2 4.1.2-3 4.2.1
        5.1.1 5.2.3 5.4.1-2 6.1.2-3 6.2.9-12 6.3.3-4 6.4.3-4 6.5.1-5 7.1.1-2 7.3.1-2 7.4.3-5 7.5.1-2 8.1.2 8.2.3 8.4.1
        9.2.2-3 11.1.1-2 11.2.1-3 11.3.3 11.4.2-4 11.5.1 11.6.1 12.1.2-3 12.3.1-4 13.1.1 13.2.1-5 13.3.1-2 13.4.2-5 14.1.1-2
        14.2.2-4 14.3.2-3 15.1.2-3 15.2.2-3 15.3.2-7 16.1.1 16.2.1-5 16.3.1-4 16.4.1-3 16.5.1-3
    """,
    3: """
        1.2.10 1.3.12 1.5.3 2.3.5 3.2.3 3.3.5 3.4.8 3.5.6-8 3.6.1 4.1.4 4.2.2-5 5.2.4 5.3.3 6.3.5 6.3.7-8 6.4.5-6 6.5.6 6.5.8
        7.5.3 8.3.2-3 11.1.4 11.2.4-5 11.3.4 12.3.5 13.1.2-4 13.2.6 13.3.4 13.4.6-7 14.2.5-7 15.2.4 15.4.1-4 16.5.4
    """,
}
COUNTS: Final = {1: 62, 2: 124, 3: 49}


def expanded(ranges: str) -> Iterator[str]:
    for part in ranges.split():
        section, _, numbers = part.rpartition(".")
        first, _, last = numbers.partition("-")
        yield from (f"{section}.{number}" for number in range(int(first), int(last or first) + 1))


@cache
def entries() -> dict[str, dict[str, object]]:
    return tomllib.loads(PAGE.read_text("utf-8"))


@cache
def functions_of(path: Path) -> frozenset[str]:
    """The test functions that pytest would find in a file; a parametrised one has one name."""
    tree = ast.parse(path.read_text("utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def missing(test: str) -> bool:
    path, _, function = test.partition("::")
    file = ROOT / path
    return not (
        re.fullmatch(r"tests/(?:\w+/)+test_\w+\.py", path)
        and file.is_file()
        and function.startswith("test_")
        and function in functions_of(file)
    )


def wrong_with(entry: dict[str, object]) -> str | None:
    """What an entry lacks, or has too much."""
    kinds = [kind for kind in KINDS if kind in entry]
    if len(kinds) != 1:
        return f"one of {', '.join(KINDS)}, not {len(kinds)}"
    if set(entry) != {"level", "subject", *kinds}:
        return "level, subject and its kind, nothing else"
    subject, told = entry["subject"], entry[kinds[0]]
    if not isinstance(subject, str) or not subject.strip():
        return "a subject"
    if kinds != ["tests"]:
        return None if isinstance(told, str) and len(told.split()) > 3 else f"{kinds[0]} in a sentence"
    if not isinstance(told, list) or not told or len(set(told)) != len(told):
        return "tests, each once"
    return None


def test_the_list_of_requirements_is_whole() -> None:
    found = {level: list(expanded(ranges)) for level, ranges in LEVELS.items()}

    assert {level: len(ids) for level, ids in found.items()} == COUNTS
    assert len({identifier for ids in found.values() for identifier in ids}) == sum(COUNTS.values())


def test_every_requirement_is_mapped_and_no_other() -> None:
    wanted = {identifier: level for level, ranges in LEVELS.items() for identifier in expanded(ranges)}

    assert sorted(wanted.keys() - entries().keys()) == []
    assert sorted(entries().keys() - wanted.keys()) == []
    assert {identifier: entry["level"] for identifier, entry in entries().items()} == wanted


def test_every_entry_is_of_one_kind_and_says_something() -> None:
    wrong = {identifier: what for identifier, entry in entries().items() if (what := wrong_with(entry)) is not None}

    assert wrong == {}


def test_every_test_that_an_entry_names_exists() -> None:
    named = [(identifier, str(test)) for identifier, entry in entries().items() for test in _tests_of(entry)]

    assert len(named) > 100
    assert [(identifier, test) for identifier, test in named if missing(test)] == []


def _tests_of(entry: dict[str, object]) -> list[object]:
    tests = entry.get("tests", [])
    assert isinstance(tests, list)
    return tests


@pytest.mark.parametrize(
    "entry",
    [
        {"level": 1, "subject": "x"},
        {"level": 1, "subject": "x", "tests": ["a"], "open": "it is not there yet"},
        {"level": 1, "subject": "x", "reason": "a b c d", "note": "x"},
        {"level": 1, "subject": " ", "reason": "it does not apply here"},
        {"level": 1, "subject": "x", "reason": ""},
        {"level": 1, "subject": "x", "open": "   "},
        {"level": 1, "subject": "x", "open": ["it is not there yet"]},
        {"level": 1, "subject": "x", "tests": []},
        {"level": 1, "subject": "x", "tests": "tests/architecture/test_asvs.py::test_one"},
        {"level": 1, "subject": "x", "tests": ["a", "a"]},
    ],
)
def test_a_wrong_entry_is_noticed(entry: dict[str, object]) -> None:
    assert wrong_with(entry) is not None


@pytest.mark.parametrize(
    ("test", "lost"),
    [
        ("tests/architecture/test_asvs.py::test_a_name_that_nothing_has_is_noticed", False),
        ("tests/architecture/test_asvs.py::test_that_was_never_written", True),
        ("tests/architecture/test_asvs.py::functions_of", True),
        ("tests/architecture/test_asvs.py", True),
        ("tests/architecture/test_nowhere.py::test_one", True),
        ("tests/../docs/asvs.toml::test_one", True),
    ],
)
def test_a_name_that_nothing_has_is_noticed(test: str, lost: bool) -> None:  # noqa: FBT001
    assert missing(test) is lost


def test_every_test_that_the_threat_model_names_exists() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", page))

    found = {
        (file, function)
        for file, function in named
        if any(function in functions_of(path) for path in (ROOT / "tests").rglob(f"{file}.py"))
    }

    assert len(named) > 50
    assert page.count("::") == len(re.findall(r"`test_\w+::test_\w+`", page)) + 1, "the page's one example, and names"
    assert sorted(named - found) == []


def test_the_threat_model_has_the_roles_and_permissions_of_the_code() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text("utf-8").partition("## Roles\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    (head, _, *told) = rows

    roles = [Role(name) for name in head[1:]]
    expected = [
        [f"`{permission}`", *("yes" if permission in ROLE_PERMISSIONS[role] else "" for role in roles)]
        for permission in Permission
    ]

    assert set(roles) == set(Role)
    assert told == expected
