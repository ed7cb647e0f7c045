"""What the product never does, read from its syntax trees: calls and imports that turn data into code, or that guard nothing.

Each list of exceptions says why. A new one belongs there only with its reason, and in docs/threat-model.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTS = ("app.py", "manage.py", "gunicorn.conf.py")

# Formats that name the objects to make, and XML, whose parsers fetch what a document names.
REVIVERS = {"pickle", "marshal", "shelve", "dill", "jsonpickle", "yaml", "xml", "lxml", "plistlib", "copyreg"}
TEMPLATES = {"jinja2", "mako", "chameleon", "markdown", "bleach"}
RENDERERS = {"render_template", "render_template_string", "stream_template", "stream_template_string", "Markup"}
# The module's name is one of our own table of commands, never what was typed.
IMPORTS_BY_NAME = {"secure_llm_proxy/cli/program.py"}
# A database takes no parameter for the name of a trigger or of a pragma: these are constants of the same module.
NAMES_IN_STATEMENTS = {"secure_llm_proxy/identity/change_triggers.py", "secure_llm_proxy/foundation/database.py"}
BROKEN_HASHES = {"md5", "sha1", "md4", "ripemd160"}
# XAES-256-GCM derives its key with single AES blocks (c2sp.org/XAES-256-GCM): a pseudo-random function, no encryption.
ECB_AS_A_FUNCTION = {"secure_llm_proxy/audit/seal.py"}
SOUND_CRYPTOGRAPHY = {
    "InvalidTag", "InvalidSignature", "Cipher", "algorithms", "modes", "AESGCM", "SHA256", "HKDF",
    "Ed25519PrivateKey", "Ed25519PublicKey",
}  # fmt: skip


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
        if name.partition(".")[0] in REVIVERS
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
