"""What a fine-tuned model's folder says of itself, read for the web side.

The folder may come from a stranger, so every file has a limit and lies in the folder itself, a
curve is made of lines and words alone, and nothing here ends a load: what is missing or broken is
left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from textmill.core.catalog.finetunings import Finetuning, parse_finetuning
from textmill.core.catalog.models_file import FINETUNE_FILE

# The names that finetune.export writes; the worker may not import it.
CURVE_FILE = "loss.svg"
CARD_FILE = "README.md"
MAX_FINETUNE_BYTES = 16 << 20  # it has every step's loss, some 60 bytes each
MAX_CURVE_BYTES = 1 << 20  # ours have 20 KB
MAX_CARD_BYTES = 128 << 10  # ours have 6 KB; the web side renders it, the worst in two seconds
# What it takes to draw a curve. Others run scripts, fetch, or let a few bytes draw for minutes.
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
    """What is told of a model; all of it may be missing."""

    finetuning: Finetuning | None = None
    curve_svg: str | None = None
    card_markdown: str | None = None


NO_PROVENANCE = Provenance()


def read_provenance(folders: Sequence[Path], report: Report) -> Provenance:
    """Read the first folder that has a ``finetune.json``.

    Args:
        folders: where to look, in this order.
        report: gets a sentence about each file that is there and cannot be used.
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
    content = _content(path, MAX_FINETUNE_BYTES, report)
    if content is None:
        return None
    try:
        return parse_finetuning(content)
    except ValueError as error:
        report(f"{path} is left out, since it is not as a fine-tuning writes it ({error})")
        return None


def _curve(path: Path, report: Report) -> str | None:
    text = _text(path, MAX_CURVE_BYTES, report)
    problem = None if text is None else _problem_of_curve(text)
    if problem is not None:
        report(f"{path} is left out, since {problem}")
        return None
    return text


def _problem_of_curve(svg: str) -> str | None:
    """Why it is no picture of a curve, as the end of a sentence; ``None`` where it is one."""
    has_others = False

    def see_element(name: str, _: object) -> None:
        nonlocal has_others
        has_others = has_others or name not in CURVE_ELEMENTS

    def see_other(*_: object) -> None:
        nonlocal has_others
        has_others = True

    parser = expat.ParserCreate("utf-8", " ")
    parser.StartElementHandler = see_element
    parser.StartDoctypeDeclHandler = see_other  # which may declare entities
    parser.ProcessingInstructionHandler = see_other
    try:
        parser.Parse(svg.encode(), True)
    except expat.ExpatError:
        return "it is no SVG"
    return "it has more in it than a drawn curve" if has_others else None


def _text(path: Path, limit: int, report: Report) -> str | None:
    content = _content(path, limit, report)
    if content is None:
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # which no database takes
        report(f"{path} is left out, since it is no text in UTF-8")
        return None
    return text or None


def _content(path: Path, limit: int, report: Report) -> bytes | None:
    """A file's bytes; anything but a plain file of that size is left out."""
    try:
        if not os.path.isfile(path):  # unlike Path.is_file, never an error
            return None
        if not _is_inside(path):
            report(f"{path} is left out, since it leads out of its folder")
            return None
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        report(f"{path} is left out: {error.strerror or 'it cannot be read'}")
        return None
    if len(content) > limit:
        report(f"{path} is left out, since it has more than {limit:,} bytes")
        return None
    return content


def _is_inside(path: Path) -> bool:
    """Whether a file is its folder's own; what a link leads to elsewhere is not for everybody."""
    folder, found = path.parent.resolve(), path.resolve()
    hub_files = folder.parent.parent / "blobs"  # the Hub's cache links to these
    return found.is_relative_to(folder) or found.is_relative_to(hub_files)
