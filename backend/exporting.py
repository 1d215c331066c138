"""Exports the history as JSON Lines or CSV, in pieces.

Programs that read these files split them into lines and cells by their own rules, and spreadsheets
evaluate cells that look like formulas. Knows nothing of requests and of the database.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from textmill.backend.response_models import JobView

CSV_COLUMNS = (
    "id", "created_at", "status", "model", "strategy", "parameters", "prompt", "text",
    "finish_reason", "prompt_tokens", "completion_tokens", "run_id",
)  # fmt: skip
BYTE_ORDER_MARK = "\ufeff"  # without it, Excel assumes the encoding of its locale
# JSON allows these characters unescaped, but Python's splitlines() and other readers end a line at
# them.
_LINE_ENDS = re.compile("[\u0085\u2028\u2029]")
_FORMULA_STARTS = "=+-@"
_GUARD = "'"  # spreadsheets show a cell that begins with it as text


def as_jsonl(jobs: Iterator[JobView]) -> Iterator[str]:
    """Yield one JSON document per line, without any character that a reader may end a line at."""
    for job in jobs:
        line = json.dumps(job, ensure_ascii=False)
        yield _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def as_csv(jobs: Iterator[JobView]) -> Iterator[str]:
    """Yield a line of column names, then one record for each job, after a byte-order mark."""
    yield BYTE_ORDER_MARK + _csv_line(CSV_COLUMNS)
    for job in jobs:
        flat = {**job, **job["usage"], "parameters": json.dumps(job["parameters"])}
        yield _csv_line(tuple(_cell(flat[name]) for name in CSV_COLUMNS))


def _csv_line(cells: tuple[Any, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    return _GUARD + value if isinstance(value, str) and is_risky(value) else value


def is_risky(text: str) -> bool:
    """Return whether a cell needs a guard.

    It does if a spreadsheet may evaluate it as a formula: spreadsheets ignore blanks and invisible
    characters at the start of a cell, and treat full-width signs as plain ones. It also does if it
    consists of quotes before such a start, so that removing one quote always restores the text.
    """
    bare = text.lstrip(_GUARD)
    if bare.startswith(("\t", "\r", "\n")):
        return True
    for character in bare:
        if (
            unicodedata.category(character)[0] not in "ZC"
        ):  # neither a blank nor a control character
            return unicodedata.normalize("NFKC", character)[0] in _FORMULA_STARTS
    return False
