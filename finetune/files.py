"""Data files: JSON lines, JSON lists, CSV, TSV and plain text, each also as ``.gz``.

Yields records and reads line by line, except for a JSON list, which is parsed as a whole. Knows
nothing of the meaning of the fields; see ``finetune.formats``.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import BinaryIO, cast

from textmill.finetune.errors import DataError
from textmill.finetune.examples import Location
from textmill.finetune.records import Record, describe_type

EXTENSIONS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# By default the csv module refuses cells longer than 131,072 characters, which is less than a long
# document. This is the highest limit that it accepts on every platform (a C long).
_MAX_CELL_CHARACTERS = (1 << 31) - 1


def extension_of(path: str) -> str:
    """The extension in lower case, ignoring ``.gz``: ``.jsonl`` for ``Train.JSONL.gz``."""
    pure = PurePath(path.lower())
    return (pure.with_suffix("") if pure.suffix == ".gz" else pure).suffix


def read_records(path: str, *, is_plain: bool = False) -> Iterator[Record]:
    """Read the records of a file; its extension decides how.

    Args:
        path: the file.
        is_plain: read it as plain text, whatever its extension.

    Returns:
        The records in the file's order. A paragraph of plain text is a record with the field
        ``text``.

    Raises:
        DataError: the file cannot be read. Also raised while the records are consumed.
    """
    _check_path(path)
    extension = ".txt" if is_plain else extension_of(path)
    if extension == ".txt":
        return _paragraphs(path)
    if extension in (".jsonl", ".ndjson"):
        return _objects(path, _lines(path))
    if extension == ".json":
        return _json(path)
    if extension in (".csv", ".tsv"):
        return _rows(path, "," if extension == ".csv" else "\t")
    raise DataError(
        path,
        f"the extension is unknown. Known extensions are {', '.join(EXTENSIONS)}, each also with"
        " .gz; --format plain reads any file as plain text.",
    )


def _check_path(path: str) -> None:
    if os.path.isdir(path):
        raise DataError(path, "is a folder. Name the files in it one by one.")
    if not os.path.exists(path):
        raise DataError(path, "the file does not exist. Correct the path.")
    if not os.path.isfile(path):
        raise DataError(path, "is not a regular file. Save its output to one.")


def _lines(path: str) -> Iterator[str]:
    """The lines of a file with their line ends, without the byte order mark (BOM).

    Lines are decoded one at a time, so that an error can name the line.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            path,
            f"is not UTF-8: the byte 0x{byte:02x} at position {error.start + 1} of the line. Save"
            " the file as UTF-8.",
            line=number,
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            path,
            f"the gzip file is corrupt or truncated: {str(error).rstrip('.')}. Write or"
            " download it again.",
            line=number + 1,
        ) from None
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}.") from error


def _opened(path: str) -> BinaryIO:
    if path.lower().endswith(".gz"):
        return cast("BinaryIO", gzip.open(path, "rb"))
    return Path(path).open("rb")


def _paragraphs(path: str) -> Iterator[Record]:
    """One record for each run of non-blank lines."""
    kept: list[str] = []
    number = start = 0
    # An extra blank line ends the last paragraph.
    for number, line in enumerate(chain(_lines(path), [""]), 1):
        if line.strip():
            start = start if kept else number
            kept.append(line.rstrip("\r\n"))
        elif kept:
            yield Record(Location(path, start), {"text": "\n".join(kept)})
            kept = []


def _objects(path: str, lines: Iterator[str]) -> Iterator[Record]:
    """One record for each line, which must be a JSON object; blank lines are skipped."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _record(_parsed(path, line, number), Location(path, number), "line")


def _json(path: str) -> Iterator[Record]:
    """A list of objects, or one object per line, as many ``.json`` files have."""
    lines = _lines(path)
    first_lines: list[str] = []
    for line in lines:
        first_lines.append(line)
        if line.strip():
            break
    if not first_lines or not first_lines[-1].lstrip().startswith("["):
        yield from _objects(path, chain(first_lines, lines))
        return
    items = _parsed(path, "".join(chain(first_lines, lines)), 1)
    for number, item in enumerate(cast("list[object]", items), 1):
        yield _record(item, Location(path, number), "item")


def _parsed(path: str, text: str, first_line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = (
            " A .json file contains a list of objects, or one object per line."
            if extension_of(path) == ".json"
            else " A .jsonl file contains one object per line."
        )
        raise DataError(
            path,
            f"is not valid JSON: {error.msg} (column {error.colno}).{hint}",
            line=first_line + error.lineno - 1,
        ) from None
    except (ValueError, RecursionError) as error:  # a number with too many digits; nesting too deep
        raise DataError(path, f"cannot be read as JSON: {error}.", line=first_line) from None


def _record(value: object, location: Location, unit: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            location.path,
            f"must be a JSON object with fields, but is {describe_type(value)}.",
            line=location.line,
            unit=unit,
        )
    return Record(location, value, unit)


def _rows(path: str, delimiter: str) -> Iterator[Record]:
    """One record for each row below the header, located at the line where the row begins."""
    header: list[str] | None = None
    for start, row in _cells(path, delimiter):
        if header is None:
            header = _header(path, start, row)
        elif len(row) != len(header):
            raise DataError(
                path,
                f"the row has {len(row)} cells, the header has {len(header)} names. Put cells that"
                " contain the delimiter or a line break between double quotes.",
                line=start,
            )
        else:
            yield Record(Location(path, start), dict(zip(header, row, strict=True)))


def _header(path: str, line: int, row: Sequence[str]) -> list[str]:
    names = [name.strip() for name in row]
    repeated = [name for name in names if name and names.count(name) > 1]
    if repeated:
        raise DataError(path, "occurs twice in the header.", line=line, field=repeated[0])
    return names


def _cells(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line where the row begins, its cells), without blank rows."""
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            path,
            f"is not a valid table: {error}. Double the quotes within a quoted cell.",
            line=start,
        ) from None
