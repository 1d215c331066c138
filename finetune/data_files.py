"""The files that examples were read from, and the fingerprint of a training's inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from textmill.finetune.config import FinetuneConfig
from textmill.finetune.examples import Example
from textmill.finetune.hub import is_hub_name


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that examples were read from.

    Attributes:
        name: without its folder, which describes the machine rather than the data.
        role: the use of its examples; ``both`` if a share of them is held out.
        sha256: of the file's bytes; empty for Hub datasets.
        num_rows: examples read, before any were dropped.
    """

    name: str
    role: Literal["training", "validation", "both"]
    sha256: str
    num_rows: int


def describe_files(config: FinetuneConfig, num_rows: Mapping[str, int]) -> tuple[DataFile, ...]:
    """Describe the files that were read; Hub datasets are known by name only.

    Args:
        config: the options, with the paths and Hub ids.
        num_rows: path → examples read; Hub datasets with ``:split``.
    """
    role: Literal["training", "both"] = "training" if config.data.validation else "both"
    files = [_file(path, role, "train", num_rows) for path in config.data.train]
    files += [_file(path, "validation", "validation", num_rows) for path in config.data.validation]
    return tuple(files)


def _file(
    path: str,
    role: Literal["training", "validation", "both"],
    split: str,
    num_rows: Mapping[str, int],
) -> DataFile:
    file = Path(path)
    if is_hub_name(path):  # its rows are counted under the name with the split
        return DataFile(path, role, "", num_rows.get(path) or num_rows.get(f"{path}:{split}", 0))
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return DataFile(file.name, role, digest, num_rows.get(path, 0))


def compute_fingerprint(
    config: FinetuneConfig,
    base_revision: str,
    files: Sequence[DataFile],
    examples: Iterable[Example],
) -> str:
    """A hash of everything that affects the weights; the location of files does not.

    Args:
        config: the options.
        base_revision: the revision of the base model.
        files: the data files.
        examples: hashed only if a file has no checksum, because Hub datasets may change.
    """
    document: dict[str, Any] = config.model_dump(mode="json", exclude={"evaluation", "description"})
    document["base"], document["output"] = base_revision, None
    document["data"] |= {"train": [], "validation": []}
    document["files"] = [(file.role, file.sha256 or file.name) for file in files]
    if not all(file.sha256 for file in files):  # a Hub dataset may change under the same name
        document["examples"] = _digest(examples)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        parts = [(part.text, part.is_learned) for part in example.parts]
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
