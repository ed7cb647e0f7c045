"""What the product never does, read from its syntax trees: calls and imports that turn data into code, or that guard nothing.

Each list of exceptions says why. A new one belongs there only with its reason, and in docs/threat-model.md.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import secure_llm_proxy

ROOT = Path(__file__).resolve().parents[2]
STARTS = ("app.py", "manage.py", "gunicorn.conf.py")

# Formats that name the objects to make, and XML, whose parsers fetch what a document names.
REVIVERS = {"pickle", "marshal", "shelve", "dill", "jsonpickle", "yaml", "xml", "lxml", "plistlib", "copyreg"}
# Composes nodes (text, lists, mappings) and never constructs objects.
COMPOSES_NODES = {"secure_llm_proxy/routing/yaml_tree.py"}
TEMPLATES = {"jinja2", "mako", "chameleon", "markdown", "bleach"}
RENDERERS = {"render_template", "render_template_string", "stream_template", "stream_template_string", "Markup"}
# The module's name is one of our own table of commands, never what was typed.
IMPORTS_BY_NAME = {"secure_llm_proxy/cli/program.py"}
# A database takes no parameter for the name of a trigger or of a pragma: these are constants of the same module.
NAMES_IN_STATEMENTS = {
    "secure_llm_proxy/identity/change_triggers.py",
    "secure_llm_proxy/foundation/database.py",
    "secure_llm_proxy/audit/keystore.py",
}
BROKEN_HASHES = {"md5", "sha1", "md4", "ripemd160"}
# XAES-256-GCM derives its key with single AES blocks (c2sp.org/XAES-256-GCM): a pseudo-random function, no encryption.
ECB_AS_A_FUNCTION = {"secure_llm_proxy/audit/seal.py"}
SOUND_CRYPTOGRAPHY = {
    "InvalidTag", "InvalidSignature", "Cipher", "algorithms", "modes", "AESGCM", "SHA256", "HKDF",
    "Ed25519PrivateKey", "Ed25519PublicKey",
}  # fmt: skip
# Loops within loops, or choices within loops, that cannot go back over what they took.
PATTERNS_THAT_NEVER_GO_BACK = {
    # Each round begins with a dot, which nothing within it takes; and an address has 254 characters at most.
    "secure_llm_proxy.identity.names._EMAIL",
    # Each round begins with a dot, which no label holds.
    "secure_llm_proxy.web.hot_doors._PLAIN_HOST",
    # A printable character or a carriage return with its line feed: no text is both.
    "secure_llm_proxy.server.request_reader._BEGUN",
}


@dataclass(frozen=True, slots=True)
class Module:
    path: str
    tree: ast.Module

    def calls(self) -> Iterator[tuple[ast.Call, str]]:
        """Every call with its name as it is written, `?` for what has none: `subprocess.run`, `eval`, `?.execute`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node, _name_of(node.func)

    def imports(self) -> Iterator[tuple[int, str, str]]:
        """Line, module, and what is taken of it (empty: the module itself)."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, name.name, "") for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.lineno, node.module or "", name.name) for name in node.names)

    def at(self, line: int, what: str) -> str:
        return f"{self.path}:{line}: {what}"


@cache
def modules() -> tuple[Module, ...]:
    """Everything that runs where the product is installed, migrations included."""
    paths = [*(ROOT / "secure_llm_proxy").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")]
    paths += [ROOT / name for name in STARTS]
    return tuple(
        Module(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))) for path in sorted(paths)
    )


def _name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        return f"{_name_of(function.value)}.{function.attr}"
    return "?"


def _is_put_together(argument: ast.expr) -> bool:
    """Whether a text is made on the spot of parts that are no constants."""
    if isinstance(argument, ast.JoinedStr | ast.BinOp):
        return not all(
            isinstance(part, ast.Constant | ast.JoinedStr | ast.BinOp | ast.operator) for part in ast.walk(argument)
        )
    return isinstance(argument, ast.Call) and _name_of(argument.func).rpartition(".")[2] in {
        "format",
        "join",
        "replace",
    }


def test_there_is_something_to_look_at() -> None:
    assert len(modules()) > 100
    assert len([call for module in modules() for call in module.calls()]) > 3_000


def test_no_text_becomes_code() -> None:
    found = [
        module.at(call.lineno, name)
        for module in modules()
        for call, name in module.calls()
        if name in {"eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module"}
        or (
            name.rpartition(".")[2] == "import_module"
            and not isinstance(call.args[0], ast.Constant)
            and module.path not in IMPORTS_BY_NAME
        )
    ]

    assert found == []


def test_no_bytes_become_objects_of_their_own_choosing() -> None:
    found = [
        module.at(line, name)
        for module in modules()
        for line, name, _ in module.imports()
        if name.partition(".")[0] in REVIVERS and not (name == "yaml" and module.path in COMPOSES_NODES)
    ]

    assert found == []


def test_no_program_is_started_through_a_shell() -> None:
    found = [
        module.at(call.lineno, name)
        for module in modules()
        for call, name in module.calls()
        if name in {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
        or (name.startswith("subprocess.") and isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp))
        or any(
            keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            for keyword in call.keywords
        )
    ]

    assert found == []


def test_no_statement_is_put_together_from_values() -> None:
    found = [
        module.at(call.lineno, name)
        for module in modules()
        if module.path not in NAMES_IN_STATEMENTS and not module.path.startswith("migrations/")
        for call, name in module.calls()
        if call.args
        and name.rpartition(".")[2] in {"text", "exec_driver_sql", "execute", "executemany", "executescript", "scalars"}
        and _is_put_together(call.args[0])
    ]

    assert found == []


def test_no_template_or_markup_is_rendered() -> None:
    found = [
        module.at(line, f"{name} {taken}")
        for module in modules()
        for line, name, taken in module.imports()
        if name.partition(".")[0] in TEMPLATES or taken in RENDERERS
    ]

    assert found == []
    assert [path for path in (ROOT / "secure_llm_proxy").rglob("*") if path.suffix in {".html", ".j2", ".js"}] == []


def test_only_sound_hashes_are_used() -> None:
    found = [
        module.at(call.lineno, name)
        for module in modules()
        for call, name in module.calls()
        if name.rpartition(".")[2] in BROKEN_HASHES or name == "hashlib.new"
        if not any(
            keyword.arg == "usedforsecurity" and isinstance(keyword.value, ast.Constant) and not keyword.value.value
            for keyword in call.keywords
        )
    ]

    assert found == []


def test_only_authenticated_encryption_is_used() -> None:
    taken = {
        (module.path, what or name)
        for module in modules()
        for _, name, what in module.imports()
        if name.partition(".")[0] == "cryptography"
    }
    block_modes = {
        (module.path, name) for module in modules() for _, name in module.calls() if name.startswith("modes.")
    }
    foreign = {
        module.at(line, name)
        for module in modules()
        for line, name, _ in module.imports()
        if name.partition(".")[0] in {"Crypto", "Cryptodome", "nacl", "rsa", "crypt"}
    }

    assert {what for _, what in taken} <= SOUND_CRYPTOGRAPHY
    assert block_modes == {(path, "modes.ECB") for path in ECB_AS_A_FUNCTION}
    assert foreign == set()


def test_unguessable_values_come_from_the_system() -> None:
    found = [
        module.at(line, name)
        for module in modules()
        for line, name, _ in module.imports()
        if name.partition(".")[0] in {"random", "numpy"}
    ]

    assert found == []


def patterns() -> Iterator[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    """Every pattern of the package that stands in a module, also where only its method is kept."""
    for found in pkgutil.walk_packages(secure_llm_proxy.__path__, "secure_llm_proxy."):
        if found.name.endswith(".__main__"):
            continue
        for name, value in vars(importlib.import_module(found.name)).items():
            whole = getattr(value, "__self__", None) if type(value) is type(re.compile("").match) else value
            if isinstance(whole, re.Pattern):
                yield f"{found.name}.{name}", whole


def may_go_back(pattern: re.Pattern[str] | re.Pattern[bytes]) -> bool:
    """Whether a loop stands within a loop, or a choice within one: what can make matching exponential."""
    reader: Any = importlib.import_module("re._parser")  # no public module reads patterns since sre_parse went
    return _goes_back(reader.parse(pattern.pattern, pattern.flags), within=False)


def _goes_back(parsed: Any, *, within: bool) -> bool:  # noqa: ANN401  the reader's own lists
    for operation, argument in parsed:
        match str(operation):
            case "MAX_REPEAT" | "MIN_REPEAT":
                _, most, body = argument
                loops = most > 8
                if (loops and within) or _goes_back(body, within=within or loops):
                    return True
            case "POSSESSIVE_REPEAT" if _goes_back(argument[2], within=False):
                return True
            case "ATOMIC_GROUP" if _goes_back(argument, within=False):
                return True
            case "SUBPATTERN" if _goes_back(argument[3], within=within):
                return True
            case "ASSERT" | "ASSERT_NOT" if _goes_back(argument[1], within=within):
                return True
            case "BRANCH" if within or any(_goes_back(branch, within=within) for branch in argument[1]):
                return True
    return False


def test_no_pattern_can_run_away() -> None:
    found = dict(patterns())

    assert len(found) > 30
    assert {name for name, pattern in found.items() if may_go_back(pattern)} == PATTERNS_THAT_NEVER_GO_BACK


@pytest.mark.parametrize(
    ("pattern", "may"),
    [
        ("(a+)+b", True), ("(a|aa)*b", True), ("(?:x(?:y*z)*)*", True), ("(?=(a+)*)c", True), ("((a{1,20}){1,20})b", True),
        ("[a-z]+b", False), ("(?:a|b)c", False), ("(?:ab+){1,3}", False), ("(?>a+)+b", False), ("a++b", False),
    ],
)  # fmt: skip
def test_patterns_that_can_run_away_are_recognised(pattern: str, may: bool) -> None:  # noqa: FBT001
    assert may_go_back(re.compile(pattern)) is may
