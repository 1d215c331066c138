"""Finds a model's files, and converts them once into a layout that loads quickly.

A source is a Hub id, a folder in save_pretrained layout, a .gguf file, or ``package:NAME``, a .gguf
file that an installed package contains. GGUF, adapters and ``.bin`` weights are converted into the
state folder. The next start finds the result there and does not need transformers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from textmill.core.catalog.sources import ModelSource, parse_source
from textmill.engine.models.checkpoint import is_plain
from textmill.engine.models.conversion import write_plain_model
from textmill.engine.models.converted_folders import (
    MARKER,
    FolderUse,
    Marker,
    read_marker,
    use,
    work_folder,
)
from textmill.engine.models.errors import (
    ModelLoadError,
    ModelUnusable,
    SourceNotFound,
    in_one_line,
)
from textmill.engine.speculation.ngram_table import NGRAMS_FILE

Report = Callable[[str], None]
# Raised when a conversion's result changes, so that earlier results are not used.
_CONVERSION = 3  # 1 lost the pre-tokenizer of .gguf files; 2 merged adapters by BLAS
_HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "README.md", "loss.svg"]


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A folder with config.json, safetensors and tokenizer.json, and a hash of their content.

    Attributes:
        use: keeps a converted folder from being removed.
    """

    folder: Path
    revision: str
    use: FolderUse | None = field(default=None, compare=False, repr=False)


def prepare(source: str, adapter: str | None, cache_dir: Path, report: Report) -> PreparedModel:
    """Find a source, and convert it unless that was done before.

    Raises:
        ModelLoadError: the source does not exist or cannot be converted.
    """
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise SourceNotFound(f"{adapter} is not a PEFT adapter: it has no adapter_config.json.")
    prepared, found, target = _look_up(source, adapter, cache_dir, report)
    if prepared is not None:
        return prepared
    base: PreparedModel | None = None  # in use until the end
    if adapter is not None and found.is_file():  # convert the base once for all its adapters
        base = prepare(source, None, cache_dir, report)
        found = base.folder
        target = cache_dir / _key(found, adapter)
    target.parent.mkdir(parents=True, exist_ok=True)
    held = use(target)
    if not (target / MARKER).is_file():
        try:
            _convert(found, adapter, target, report)
        except BaseException:
            held.give_up()
            raise
    return _marked(target, held)


def find_prepared(
    source: str, adapter: str | None, cache_dir: Path, report: Report
) -> PreparedModel | None:
    """Return the result of ``prepare`` if it needs no conversion, and ``None`` otherwise.

    Raises:
        ModelLoadError: the source does not exist or cannot be used.
    """
    return _look_up(source, adapter, cache_dir, report)[0]


def _look_up(
    source: str, adapter: str | None, cache_dir: Path, report: Report
) -> tuple[PreparedModel | None, Path, Path]:
    """The prepared model or ``None``, the source's file or folder, and the conversion's target."""
    if adapter is not None and not (Path(adapter) / "adapter_config.json").is_file():
        raise SourceNotFound(f"{adapter} is not a PEFT adapter: it has no adapter_config.json.")
    found = locate(source, report)
    try:
        if found.is_dir() and adapter is None and is_plain(found):
            return PreparedModel(found, _revision(found)), found, found
        if adapter is not None and found.is_file():
            base = cache_dir / _key(found, None)
            if not (base / MARKER).is_file():
                return None, found, base
            found = base
        target = cache_dir / _key(found, adapter)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelUnusable(f"{error.filename or found} cannot be read: {reason}.") from error
    held = use(target) if (target / MARKER).is_file() else None
    exists = held is not None and (target / MARKER).is_file()  # it was not removed meanwhile
    return _marked(target, held) if exists else None, found, target


def _marked(target: Path, held: FolderUse | None) -> PreparedModel:
    """Read the marker of a finished conversion."""
    try:
        return PreparedModel(target, read_marker(target).revision, held)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnusable(
            f"{target / MARKER} cannot be read. Remove the folder {target}; the model"
            " is then converted again."
        ) from error


def is_of(source: str, adapter: str | None, name: str, marker: Marker, cache_dir: Path) -> bool:
    """Whether a converted folder may be used for a source and its adapter; fetches nothing.

    Args:
        source: as in the models file, with or without an adapter.
        adapter: as in the models file.
        name: of the folder in ``cache_dir``.
        marker: of the folder.
        cache_dir: the folder of converted models.
    """
    if parse_source(source).kind == "hub":
        return f"models--{source.replace('/', '--')}" in marker.source  # the Hub's cache
    try:
        found = locate(source, lambda _: None)
        names = {_key(found, None)}
        if adapter is not None:
            base = cache_dir / _key(found, None) if found.is_file() else found
            names.add(_key(base, adapter))
    except (OSError, ModelLoadError):  # it may only be away for now
        return marker.source == source or (adapter is not None and marker.adapter == adapter)
    return name in names


def locate(source: str, report: Report) -> Path:
    """Find the folder or the .gguf file of a source."""
    parsed = parse_source(source)
    if parsed.kind == "package":
        return _in_package(parsed)
    path = Path(source)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelUnusable(f"{path} has no config.json; save_pretrained writes one.")
        return path
    if parsed.kind == "path":
        raise SourceNotFound(f"There is no model at {source}.")
    return _from_hub(source, report)


def _in_package(source: ModelSource) -> Path:
    """The .gguf file of an installed package, which is not imported."""
    name, spec = source.value, source.package_spec()
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise SourceNotFound(f"The package {name} is not installed; `make up` installs it.")
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.gguf"))
    if not files:
        raise SourceNotFound(f"The package {name} contains no .gguf file.")
    return files[0]


def _from_hub(source: str, report: Report) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - seconds, and rarely needed

    report(f"Fetching {source} from the model Hub, once")
    try:
        return Path(snapshot_download(source, allow_patterns=_HUB_FILES))
    except Exception as error:  # the network and the Hub fail in many ways
        raise SourceNotFound(
            f"{source!r} is not a folder or file, and fetching it from the model Hub failed"
            f" ({type(error).__name__}). Check the name and the network."
        ) from error


def _identity(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [
        (f.name, f.stat().st_size, f.stat().st_mtime_ns)
        for f in files
        if f.is_file() and f.name != NGRAMS_FILE  # it is no part of the conversion
    ]
    return repr((str(path.resolve()), stats))


def _key(found: Path, adapter: str | None) -> str:
    identity = _identity(found) + (_identity(Path(adapter)) if adapter else "")
    identity += f", conversion {_CONVERSION}"
    return f"{found.stem[:40] or 'model'}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _convert(found: Path, adapter: str | None, target: Path, report: Report) -> None:
    how = " with its adapter" if adapter else ""
    report(f"Converting {found.name}{how} to safetensors, once")
    work = work_folder(target)
    try:
        write_plain_model(found, adapter, work, report)
        marker = {"source": str(found), "adapter": adapter, "revision": _revision(work)}
        (work / MARKER).write_text(json.dumps(marker), encoding="utf-8")
        try:
            work.rename(target)
        except OSError:
            if not (target / MARKER).is_file():  # otherwise another worker was faster
                raise
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises errors of many types
        raise ModelUnusable(
            f"{found} cannot be loaded as a causal language model: {in_one_line(error)}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def state_of(folder: Path) -> list[tuple[str, int, int, int]] | None:
    """A state that changes whenever a folder's revision may; ``None`` if it cannot be read."""
    try:
        stats = [(file.name, file.stat()) for file in _revised(folder)]
    except OSError:  # no folder, or one that is changing
        return None
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _revised(folder: Path) -> list[Path]:
    """The files that determine the output, and so the revision."""
    names = {"config.json", "tokenizer.json"}
    return [f for f in sorted(folder.iterdir()) if f.suffix == ".safetensors" or f.name in names]


def _revision(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in _revised(folder):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()[:12]
