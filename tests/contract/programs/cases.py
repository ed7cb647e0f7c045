"""What the Python programs share: named cases, each run once, and one JSON object of what they gave.

The programs run in environments of their own and know nothing of the tests; what they gave is judged there.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable

BASE_URL = os.environ["BASE_URL"]
API_KEY = os.environ["API_KEY"]
MODEL = os.environ["MODEL"]
# What stands before the name of a failure in the name of a model that fails so; a model that never answers.
FAILING = os.environ["FAILING"]
HANGING = os.environ["HANGING"]
# A picture of one pixel.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}

Case = Callable[[], object]
_CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Take part under the function's own name."""
    _CASES[function.__name__] = function
    return function


def told_of(error: BaseException) -> dict[str, object]:
    """What a caller sees of an error: its class and those above, and what the SDK says about it."""
    return {
        "raised": type(error).__name__,
        "classes": [kind.__name__ for kind in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "message": str(error),
        "trace": traceback.format_exception(error)[-2000:],
    }


def run(only: Callable[[str], bool] = lambda _: True) -> None:
    """Run every case and print what they gave; an error that leaves a case is what it gave."""
    gave: dict[str, object] = {}
    for name, function in _CASES.items():
        if not only(name):
            continue
        try:
            result = function()
            gave[name] = asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001 - errors are results here
            gave[name] = told_of(error)
    json.dump(gave, sys.stdout, default=str)


async def _awaited(result: Awaitable[object]) -> object:
    return await result
