"""Exports are safe in spreadsheets and readable by every reader of lines."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textmill.backend.exporting import CSV_COLUMNS, as_csv, as_jsonl, is_risky

STARTS = [
    "=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\n", "\t", " =1", "\u00a0=1", "\u3000@x",
    "＝1", "＋1", "－1", "＠x", "\ufe66 1", "\u200b=1", "\ufeff=1", "\u202e+1", "\u2007-1",
    "\x01=1", "\x85=1", "\n\n =1", "'=1", "''=1", "'\t=1", "'\r",
]  # fmt: skip
PLAIN = [
    "a", "", " a", "'tis", "1=1", "a\n=1", "(=1)", "#", "\u00a0a", "’=1", "é", "\u2028a", "'", " ",
]  # fmt: skip


def job(**fields: Any) -> Any:
    empty = dict.fromkeys(CSV_COLUMNS, "") | {"parameters": {"seed": 1}, "usage": {}}
    return {**empty, "usage": {"prompt_tokens": 1, "completion_tokens": 2}, **fields}


def cells(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff")
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


@pytest.mark.parametrize("text", STARTS)
def test_a_cell_that_may_be_evaluated_as_a_formula_gets_a_quote(text: str) -> None:
    (row,) = cells("".join(as_csv(iter([job(prompt=text, model=text)]))))
    assert (row["prompt"], row["model"]) == ("'" + text, "'" + text)


@pytest.mark.parametrize("text", PLAIN)
def test_any_other_cell_is_unchanged(text: str) -> None:
    (row,) = cells("".join(as_csv(iter([job(text=text)]))))
    assert row["text"] == text


@given(st.text())
def test_removing_one_quote_restores_every_text(text: str) -> None:
    (row,) = cells("".join(as_csv(iter([job(text=text)]))))
    cell = row["text"]
    assert (cell[1:] if cell.startswith("'") and is_risky(cell) else cell) == text


@given(st.lists(st.text(st.characters(codec="utf-8"))))
def test_every_json_line_is_one_line_for_every_reader(texts: list[str]) -> None:
    texts = [*texts, "a\u2028b\u2029c\x85d\x0b\x0c\x1c\x1d\x1e\r\n"]
    written = "".join(as_jsonl(job(text=text) for text in texts))
    for lines in (written.splitlines(), written.split("\n")[:-1], written.encode().splitlines()):
        assert [json.loads(line)["text"] for line in lines] == texts
