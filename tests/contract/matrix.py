"""The matrix of docs/providers.md: what each provider is shown to do, by the names of the tests that show it.

    python -m tests.contract.matrix [--write]

A cell names a test of tests/contract/test_providers.py that pytest collects, or says "not offered" and why. Without `--write`
the table is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "providers.md"
_TESTS = "tests/contract/test_providers.py"
_BEGIN, _END = "<!-- matrix of tests, made by tests/contract/matrix.py -->\n", "<!-- end of the matrix -->\n"
_PATIENCE_S = 120

# Kinds of providers in the order of the table, with their titles.
PROVIDERS = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "gemini": "Google Gemini",
    "cohere": "Cohere",
    "mistral": "Mistral",
    "groq": "Groq",
    "openrouter": "OpenRouter",
    "together": "Together AI",
    "azure": "Azure OpenAI",
    "azure_deployments": "Azure OpenAI, API by date",
}
COLUMNS = {
    "chat": "test_chat",
    "stream": "test_stream",
    "tools": "test_tools",
    "JSON schema": "test_json_schema",
    "images": "test_images",
    "embeddings": "test_embeddings",
    "usage": "test_usage",
    "errors": "test_errors",
}
NOT_OFFERED = {
    ("anthropic", "embeddings"): "it has no such endpoint",
    ("groq", "embeddings"): "it has no such endpoint",
}


def collected() -> set[str]:
    """Names of the tests in `_TESTS`, parameters included, as pytest finds them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", _TESTS],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=_PATIENCE_S,
    )  # fmt: skip
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


def table(tests: set[str]) -> str:
    """Raises LookupError for a cell that has neither a test nor a reason, or both."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for provider, title in PROVIDERS.items():
        cells = []
        for column, function in COLUMNS.items():
            name, reason = f"{function}[{provider}]", NOT_OFFERED.get((provider, column))
            if (name in tests) == (reason is not None):
                raise LookupError(f"{title}, {column}: exactly one of a test and a reason is needed")
            cells.append(f"`{name}`" if reason is None else f"not offered: {reason}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def in_document(text: str) -> str:
    """The table as the document has it now."""
    found = re.search(re.escape(_BEGIN) + "(.*?)" + re.escape(_END), text, re.DOTALL)
    if found is None:
        raise LookupError(f"{DOCUMENT.name} has no place for the matrix")
    return found[1]


def main() -> None:
    made = table(collected())
    if "--write" not in sys.argv[1:]:
        print(made, end="")
        return
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(text.replace(_BEGIN + in_document(text) + _END, _BEGIN + made + _END), "utf-8")


if __name__ == "__main__":
    main()
