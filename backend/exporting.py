"""The history as a file: JSON lines or CSV, a piece at a time.

Both are meant for programs that cut a file into lines and cells by rules of their own, some of them
spreadsheets, which run what looks like a formula. Knows nothing of requests and of the database.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]
CSV_COLUMNS = (
    "id", "created_at", "status", "model", "strategy", "parameters", "prompt", "text",
    "finish_reason", "prompt_tokens", "completion_tokens", "run_id",
)  # fmt: skip
BYTE_ORDER_MARK = "\ufeff"  # without it Excel takes a CSV for the encoding of its country
# JSON allows them unescaped; JavaScript, Python's splitlines() and others end a line at them.
_LINE_ENDS = re.compile("[\u0085\u2028\u2029]")
_FORMULA_STARTS = "=+-@"
_GUARD = "'"  # spreadsheets show a cell that begins with it as text


def as_jsonl(jobs: Iterator[Document]) -> Iterator[str]:
    """One JSON document a line; no reader finds a line's end within one."""
    for job in jobs:
        line = json.dumps(job, ensure_ascii=False)
        yield _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n"


def as_csv(jobs: Iterator[Document]) -> Iterator[str]:
    """A line of names, then one record a job, in UTF-8 with a byte-order mark."""
    yield BYTE_ORDER_MARK + _csv_line(CSV_COLUMNS)
    for job in jobs:
        flat = job | job["usage"] | {"parameters": json.dumps(job["parameters"])}
        yield _csv_line(tuple(_cell(flat[name]) for name in CSV_COLUMNS))


def _csv_line(cells: tuple[Any, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(cells)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    return _GUARD + value if isinstance(value, str) and is_risky(value) else value


def is_risky(text: str) -> bool:
    """Whether a spreadsheet may take a cell for a formula, or a reader for a guarded cell.

    Spreadsheets pass over blanks and invisible characters at a cell's start, and take full-width
    signs for plain ones. A cell that begins with a quote before such a start gets one more, so that
    a reader who takes one quote away always has the text.
    """
    bare = text.lstrip(_GUARD)
    if bare.startswith(("\t", "\r", "\n")):
        return True
    for character in bare:
        if unicodedata.category(character)[0] not in "ZC":  # not a blank, not a control character
            return unicodedata.normalize("NFKC", character)[0] in _FORMULA_STARTS
    return False
