"""What auditors ask: parameters under the origin's names, read strictly, refused with a sentence that says what fits."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import Field

from secure_llm_proxy.audit import ExportFormat
from secure_llm_proxy.audit.exports import Risk
from secure_llm_proxy.audit.frameworks import FRAMEWORK_OF
from secure_llm_proxy.audit.report import ReportType, Wanted
from secure_llm_proxy.foundation.errors import InvalidRequest
from secure_llm_proxy.web.admin.frame import Body, Identifier, Query

Choice = TypeVar("Choice", bound=StrEnum)

RECORDS_MAX = 50_000
"""Records of one export; its last row has the cursor to go on with."""
_DAYS_DEFAULT = 30
_DAYS_MAX = 366
_ALL = "all"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)?")
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_CURSOR_MARK = "n:"

Word = Annotated[str, Field(min_length=1, max_length=64)]


class PeriodQuery(Query):
    start_date: Word | None = None
    end_date: Word | None = None
    framework: Word = _ALL

    def period(self, now: datetime) -> tuple[datetime, datetime]:
        """From `start_date` on, and up to `end_date`: a day counts whole, and nothing lies behind `now`.

        Without `end_date`: now; without `start_date`: 30 days before. Raises `InvalidRequest`.
        """
        until = now if self.end_date is None else _moment(self.end_date, "end_date", end=True)
        since = until - timedelta(days=_DAYS_DEFAULT)
        if self.start_date is not None:
            since = _moment(self.start_date, "start_date", end=False)
        if since > now:
            raise InvalidRequest("`start_date` lies in the future.", param="start_date")
        if since >= until:
            raise InvalidRequest("`start_date` must be before `end_date`.", param="start_date")
        if until - since > timedelta(days=_DAYS_MAX):
            raise InvalidRequest(f"At most {_DAYS_MAX} days at once: ask for several periods.", param="start_date")
        return since, min(until, now)

    def frameworks(self) -> tuple[str, ...]:
        """The keys of those asked for, by commas; empty for all. Raises `InvalidRequest`."""
        asked = _listed(self.framework)
        spelt = {key.replace("_", ""): key for key in FRAMEWORK_OF}
        found = [spelt.get(re.sub(r"[-_ ]", "", each)) for each in asked]
        if None in found:
            raise InvalidRequest(f"`framework` is one of {_ALL}, {', '.join(FRAMEWORK_OF)}.", param="framework")
        return tuple(dict.fromkeys(key for key in found if key is not None))


class ExportQuery(PeriodQuery):
    format: Word = ExportFormat.JSON.value
    limit: Annotated[int, Field(ge=1, le=RECORDS_MAX)] = RECORDS_MAX
    cursor: Annotated[str, Field(max_length=64)] | None = None

    def kind(self) -> ExportFormat:
        return _one_of(ExportFormat, self.format, "format")

    def after(self) -> int:
        """The line behind which to go on. Raises `InvalidRequest` for a cursor that is none of ours."""
        if self.cursor is None:
            return -1
        try:
            text = base64.urlsafe_b64decode(self.cursor.encode("ascii") + b"==").decode("ascii")
        except (binascii.Error, ValueError):
            text = ""
        if not re.fullmatch(_CURSOR_MARK + r"[0-9]{1,18}", text):
            raise InvalidRequest("That is no cursor of ours.", param="cursor")
        return int(text[len(_CURSOR_MARK) :])


class ReportQuery(PeriodQuery):
    type: Word = ReportType.COMPREHENSIVE.value
    risk_level: Word = _ALL

    def wanted(self, now: datetime) -> Wanted:
        """Raises `InvalidRequest`."""
        kind = _one_of(ReportType, self.type, "type")
        since, until = self.period(now)
        return Wanted(since, until, kind, self.frameworks(), self._risks())

    def _risks(self) -> tuple[Risk, ...]:
        known = {risk.value.lower(): risk for risk in Risk}
        asked = _listed(self.risk_level)
        if not known.keys() >= asked:
            raise InvalidRequest(f"`risk_level` is one of {_ALL}, {', '.join(known)}.", param="risk_level")
        return tuple(risk for name, risk in known.items() if name in asked)


class ValidateRequest(Body):
    audit_id: Identifier


def cursor_of(n: int) -> str:
    return base64.urlsafe_b64encode(f"{_CURSOR_MARK}{n}".encode()).decode().rstrip("=")


def _listed(text: str) -> set[str]:
    """Words between commas, in lower case; empty when one of them is `all`."""
    words = {word.strip().lower() for word in text.split(",")}
    return set() if _ALL in words else words


def _one_of(choices: type[Choice], text: str, param: str) -> Choice:
    try:
        return choices(text.strip().lower())
    except ValueError:
        raise InvalidRequest(f"`{param}` is one of {_names(choices)}.", param=param) from None


def _names(choices: Iterable[StrEnum]) -> str:
    return ", ".join(choice.value for choice in choices)


def _moment(text: str, param: str, *, end: bool) -> datetime:
    """A day (in UTC; as an end it counts whole) or a time (without a zone: UTC)."""
    wrong = InvalidRequest(
        f"`{param}` is a day (2026-11-21) or a time (2026-11-21T14:05:00Z; a `+` in a URL is written %2B).", param=param
    )
    if not (_DAY.fullmatch(text) or _MOMENT.fullmatch(text)):
        raise wrong
    try:
        moment = datetime.fromisoformat(text.upper())
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        if end and _DAY.fullmatch(text):
            moment += timedelta(days=1)
    except (ValueError, OverflowError):
        raise wrong from None
    if moment < _EARLIEST:
        raise InvalidRequest(f"`{param}` lies before {_EARLIEST:%Y-%m-%d}: no log reaches back so far.", param=param)
    return moment
