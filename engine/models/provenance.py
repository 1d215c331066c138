"""Reads the provenance files of a fine-tuned model's folder, for the web process.

The folder may come from an untrusted source. So every file has a size limit and must be inside the
folder, a curve may contain only lines and text, and no error here fails a load: missing or invalid
files are omitted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from textmill.core.catalog.finetunings import Finetuning, parse_finetuning
from textmill.core.catalog.models_file import FINETUNE_FILE

# The names that finetune.export writes; the engine may not import it.
CURVE_FILE = "loss.svg"
CARD_FILE = "README.md"
MAX_FINETUNE_BYTES = 16 << 20  # it contains every step's loss, about 60 bytes each
MAX_CURVE_BYTES = 1 << 20  # those of finetune.export have 20 KB
# Those of finetune.export have 6 KB. The web process renders the worst of this size in two seconds.
MAX_CARD_BYTES = 128 << 10
# The elements needed to draw a curve. Others run scripts, load resources, or draw for minutes.
CURVE_ELEMENTS = frozenset(
    f"http://www.w3.org/2000/svg {name}"
    for name in (
        "svg", "title", "desc", "style", "g", "rect", "line", "polyline", "path", "circle", "text",
        "tspan",
    )
)  # fmt: skip
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Provenance:
    """The provenance of a model; every part may be missing."""

    finetuning: Finetuning | None = None
    curve_svg: str | None = None
    card_markdown: str | None = None


NO_PROVENANCE = Provenance()


def read_provenance(folders: Sequence[Path], report: Report) -> Provenance:
    """Read the first folder that has a ``finetune.json``.

    Args:
        folders: the folders to search, in this order.
        report: is called with a sentence about each file that exists but cannot be used.
    """
    folder = next((f for f in folders if os.path.isfile(f / FINETUNE_FILE)), None)
    if folder is None:
        return NO_PROVENANCE
    return Provenance(
        finetuning=_finetuning(folder / FINETUNE_FILE, report),
        curve_svg=_curve(folder / CURVE_FILE, report),
        card_markdown=_text(folder / CARD_FILE, MAX_CARD_BYTES, report),
    )


def _finetuning(path: Path, report: Report) -> Finetuning | None:
    content = bounded_content(path, MAX_FINETUNE_BYTES, report)
    if content is None:
        return None
    try:
        return parse_finetuning(content)
    except ValueError as error:
        report(f"{path} is omitted, because it is not valid ({error})")
        return None


def _curve(path: Path, report: Report) -> str | None:
    text = _text(path, MAX_CURVE_BYTES, report)
    problem = None if text is None else _problem_of_curve(text)
    if problem is not None:
        report(f"{path} is omitted, because {problem}")
        return None
    return text


def _problem_of_curve(svg: str) -> str | None:
    """The reason why an SVG is not accepted, as the end of a sentence; ``None`` if it is."""
    is_rejected = False

    def check_element(name: str, _: object) -> None:
        nonlocal is_rejected
        is_rejected = is_rejected or name not in CURVE_ELEMENTS

    def reject(*_: object) -> None:
        nonlocal is_rejected
        is_rejected = True

    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler = check_element
    parser.StartDoctypeDeclHandler = reject  # which may declare entities
    parser.ProcessingInstructionHandler = reject
    try:
        parser.Parse(svg.encode(), True)
    except expat.ExpatError:
        return "it is not an SVG file"
    return "it contains more than a drawn curve" if is_rejected else None


def _text(path: Path, limit: int, report: Report) -> str | None:
    content = bounded_content(path, limit, report)
    if content is None:
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # no database accepts it
        report(f"{path} is omitted, because it is not text in UTF-8")
        return None
    return text or None


def bounded_content(path: Path, limit: int, report: Report) -> bytes | None:
    """The bytes of a regular file within the limit; ``None`` for anything else."""
    try:
        if not os.path.isfile(path):  # unlike Path.is_file, never an error
            return None
        if not _is_inside(path):
            report(f"{path} is omitted, because it is outside of its folder")
            return None
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        report(f"{path} is omitted: {error.strerror or 'it cannot be read'}")
        return None
    if len(content) > limit:
        report(f"{path} is omitted, because it has more than {limit:,} bytes")
        return None
    return content


def _is_inside(path: Path) -> bool:
    """Whether a file is inside its folder; the target of a link elsewhere must not be published."""
    folder, found = path.parent.resolve(), path.resolve()
    hub_files = folder.parent.parent / "blobs"  # the Hub's cache links to these
    return found.is_relative_to(folder) or found.is_relative_to(hub_files)
