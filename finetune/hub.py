"""Datasets of the Hugging Face Hub: ``owner/name`` or ``name``, optionally with ``:split``.

Yields records, as ``finetune.files`` does; knows nothing of the meaning of the fields.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from textmill.engine.models.errors import in_one_line
from textmill.finetune.errors import DataError
from textmill.finetune.examples import Location
from textmill.finetune.files import EXTENSIONS, extension_of
from textmill.finetune.records import Record

_NAME = re.compile(r"(?P<id>[A-Za-z0-9_][\w.-]*(/[\w.-]+)?)(:(?P<split>[A-Za-z0-9_][\w.-]*))?")
# The Hub converts datasets that were published as a script, which `datasets` no longer runs, to
# Parquet in this revision. Multi-XScience (multi_x_science_sum) is one of them.
_PARQUET_REVISION = "refs/convert/parquet"


def is_hub_name(name: str) -> bool:
    """Whether the name refers to a Hub dataset: not an existing path, nor a data file's name."""
    is_file_name = extension_of(name) in EXTENSIONS or name.lower().endswith(".gz")
    return bool(_NAME.fullmatch(name)) and not is_file_name and not os.path.exists(name)


def read_hub_records(name: str, split: str) -> Iterator[Record]:
    """Load the rows of a dataset.

    Args:
        name: a Hub id, optionally with a colon and a split.
        split: the split to load if the name has none.

    Raises:
        DataError: the dataset cannot be loaded.
    """
    if found := _NAME.fullmatch(name):
        name, split = found["id"], found["split"] or split
    path = f"{name}:{split}"
    try:
        rows = _load(name, split)
    except Exception as error:  # network, Hub and files fail in many ways
        raise DataError(
            path,
            "is not a local file, and loading it from the Hugging Face Hub failed"
            f" ({in_one_line(error)}). Check the path, or the name, the split and the network.",
        ) from error
    for number, row in enumerate(rows, 1):
        yield Record(Location(path, number), row, "row")


def _load(name: str, split: str) -> Any:
    import datasets  # noqa: PLC0415 - takes seconds, and is seldom needed

    try:
        return datasets.load_dataset(name, split=split)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return datasets.load_dataset(name, split=split, revision=_PARQUET_REVISION)
