"""Multi-XScience: the abstracts of all papers that a paper cites, as one text.

Lu, Dong and Charlin, "Multi-XScience: A Large-scale Dataset for Extreme Multi-document
Summarization of Scientific Articles", EMNLP 2020, https://github.com/yaolu/Multi-XScience. Its
``related_work`` refers to the papers as ``@cite_N``, and so does this text.

In the published files ``ref_abstract`` is ``{"@cite_1": {"mid": …, "abstract": …}, …}``. On the Hub
it is an object of columns, ``{"cite_N": ["@cite_1", …], "mid": […], "abstract": […]}``, or a list
of such rows.
"""

from __future__ import annotations

from typing import Any

from textmill.finetune.records import Record, describe_type


def reference_text(record: Record) -> str:
    r"""``@cite_1: Its abstract.\n@cite_2: …\n\n``: one line per paper, then a blank line.

    Papers without an abstract, of which there are many, are omitted; empty if no paper has one.

    Raises:
        DataError: ``ref_abstract`` has none of the three forms.
    """
    lines = []
    for cite, abstract, name in _references(record):
        if abstract is None:
            continue
        line = " ".join(record.as_text(abstract, f"ref_abstract.{name}.abstract").split())
        label = record.as_text(cite, f"ref_abstract.{name}")
        if line:
            lines.append(f"@{label.removeprefix('@')}: {line}\n")
    return "".join(lines) + "\n" if lines else ""


def _references(record: Record) -> list[tuple[object, object, str]]:
    """(citation mark, abstract, name for messages) of each paper; the first two unchecked."""
    given = record.fields.get("ref_abstract")
    if isinstance(given, list):
        rows = [_checked(record, row, str(n), "cite_N", "abstract") for n, row in enumerate(given)]
        return [(row["cite_N"], row["abstract"], str(n)) for n, row in enumerate(rows)]
    if not isinstance(given, dict):
        fault = (
            f"but is {describe_type(given)}"
            if "ref_abstract" in record.fields
            else "but is missing"
        )
        raise record.error(f"must be an object, {fault}.", "ref_abstract")
    if isinstance(given.get("cite_N"), list):
        return _columns(record, given)
    papers = {cite: _checked(record, row, cite, "abstract") for cite, row in given.items()}
    return [(cite, row["abstract"], cite) for cite, row in papers.items()]


def _columns(record: Record, given: dict[str, Any]) -> list[tuple[object, object, str]]:
    cites, abstracts = given["cite_N"], given.get("abstract")
    if not isinstance(abstracts, list) or len(abstracts) != len(cites):
        raise record.error("must be a list of the same length as cite_N.", "ref_abstract.abstract")
    return [(c, a, str(n)) for n, (c, a) in enumerate(zip(cites, abstracts, strict=True))]


def _checked(record: Record, row: object, name: str, *keys: str) -> dict[str, Any]:
    """``row``, checked to be an object with ``keys``."""
    if not isinstance(row, dict):
        raise record.error(
            f"must be an object, but is {describe_type(row)}.", f"ref_abstract.{name}"
        )
    for key in keys:
        if key not in row:
            raise record.error("is missing.", f"ref_abstract.{name}.{key}")
    return row
