"""Finds a model's files, and converts them once into a layout that loads quickly.

A source is a Hub id, a folder in save_pretrained layout, a .gguf file, or ``package:NAME``, a .gguf
file that an installed package contains. GGUF, adapters and ``.bin`` weights are converted into the
state folder. The next start finds the result there and does not need transformers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.processors import TemplateProcessing

from textmill.core.catalog.sources import ModelSource, parse_source
from textmill.engine.models.checkpoint import Checkpoint
from textmill.engine.models.errors import (
    ModelLoadError,
    ModelUnusable,
    SourceNotFound,
    check_complete,
    in_one_line,
)
from textmill.engine.models.families import bare_name, describe
from textmill.engine.models.gguf_tokenizer import read_gguf_tokenizer
from textmill.engine.models.gguf_weights import convert_gguf
from textmill.engine.models.lora import read_lora
from textmill.engine.models.safetensors_writer import Float32, write_float32
from textmill.engine.models.shapes import check_tensors
from textmill.engine.speculation.ngram_table import NGRAMS_FILE
from textmill.tokenizing.safe_tokenizer import SafeTokenizer

Report = Callable[[str], None]
# Raised when a conversion's result changes, so that earlier results are not used.
_CONVERSION = 3  # 1 lost the pre-tokenizer of .gguf files; 2 merged adapters by BLAS
_NO_MAXIMUM = int(1e30)  # transformers' model_max_length of a tokenizer that has none
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "README.md", "loss.svg"]


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A folder with config.json, safetensors and tokenizer.json, and a hash of their content."""

    folder: Path
    revision: str


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
    if adapter is not None and found.is_file():  # convert the base once for all its adapters
        found = prepare(source, None, cache_dir, report).folder
        target = cache_dir / _key(found, adapter)
    if not (target / "prepared.json").is_file():
        _convert(found, adapter, target, report)
    return _marked(target)


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
        if found.is_dir() and adapter is None and _is_quick(found):
            return PreparedModel(found, _revision(found)), found, found
        if adapter is not None and found.is_file():
            base = cache_dir / _key(found, None)
            if not (base / "prepared.json").is_file():
                return None, found, base
            found = base
        target = cache_dir / _key(found, adapter)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelUnusable(f"{error.filename or found} cannot be read: {reason}.") from error
    exists = (target / "prepared.json").is_file()
    return _marked(target) if exists else None, found, target


def _marked(target: Path) -> PreparedModel:
    """Read the marker of a finished conversion."""
    try:
        marker = json.loads((target / "prepared.json").read_text(encoding="utf-8"))
        return PreparedModel(target, str(marker["revision"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnusable(
            f"{target / 'prepared.json'} cannot be read. Remove the folder {target}; the model"
            " is then converted again."
        ) from error


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


def plain_config(folder: Path) -> Any:
    """Read a folder's config, without the mark of a GGUF origin.

    The weights of a converted folder are not quantized; with the mark, transformers would neither
    train nor save them.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - seconds

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _drop_gguf_mark(config)
    return config


def _drop_gguf_mark(config: Any) -> None:
    mark = getattr(config, "quantization_config", None)  # a dict if it was read from a file
    method = getattr(mark, "quant_method", None)
    if isinstance(mark, dict):
        method = mark.get("quant_method")
    if method == "gguf":
        del config.quantization_config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; its folder may also contain those of adapters."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnusable(f"{index} cannot be read. Copy the folder again.") from error
        return [folder / name for name in sorted(names)]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


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


def _is_quick(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() and bool(weight_files(folder))


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
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        _save(found, adapter, work, report)
        marker = {"source": str(found), "adapter": adapter, "revision": _revision(work)}
        (work / "prepared.json").write_text(json.dumps(marker), encoding="utf-8")
        try:
            work.rename(target)
        except OSError:
            if not (target / "prepared.json").is_file():  # otherwise another worker was faster
                raise
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises errors of many types
        raise ModelUnusable(
            f"{found} cannot be loaded as a causal language model: {in_one_line(error)}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _save(found: Path, adapter: str | None, work: Path, report: Report) -> None:
    """Convert with NumPy where that is possible, and otherwise with transformers and PEFT."""
    if adapter is None and found.is_file() and _save_gguf(found, work, report):
        return
    if adapter is not None and found.is_dir() and _save_merged(found, Path(adapter), work):
        return
    _save_with_transformers(found, adapter, work, report)


def _save_gguf(found: Path, work: Path, report: Report) -> bool:
    read = read_gguf_tokenizer(found, report)  # first, because it fails within a second
    if not convert_gguf(found, work):
        return False
    if read.tokenizer.post_processor is None:  # transformers writes one that adds nothing
        read.tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
    read.tokenizer.save(str(work / "tokenizer.json"))
    facts = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _NO_MAXIMUM,
        "tokenizer_class": "TokenizersBackend",
        **read.roles,
    }
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
    (work / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if read.chat_template is not None:
        (work / "chat_template.jinja").write_text(read.chat_template, encoding="utf-8")
    return True


def _save_merged(found: Path, adapter: Path, work: Path) -> bool:
    """Merge a LoRA adapter into a natively supported model; false if PEFT is needed."""
    config = _json_object(found / "config.json")
    spec = None if config is None else describe(config)
    if config is None or spec is None or not _is_quick(found):
        return False
    weights = Checkpoint(weight_files(found))
    check_tensors(spec, config, weights.entries)
    merge = read_lora(adapter, spec.family, weights)
    if merge is None:
        return False

    def read(name: str) -> Float32:
        merged = merge.merged(bare_name(name), np.asarray(weights[name], np.float32))
        if not np.isfinite(merged).all():
            raise ModelUnusable(f"{found}: the tensor {name} contains values that are not finite.")
        return merged

    shapes = {name: entry.shape for name, entry in weights.entries.items()}
    write_float32(work / "model.safetensors", shapes, read)
    config.pop("quantization_config", None)
    text = json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True)
    (work / "config.json").write_text(text + "\n", encoding="utf-8")
    for name in _COPIED:
        if (found / name).is_file():
            shutil.copyfile(found / name, work / name)
    return True


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _save_with_transformers(found: Path, adapter: str | None, work: Path, report: Report) -> None:
    import torch  # noqa: PLC0415 - a quick start needs neither
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    tokenizer = _tokenizer(found, report)  # first, because it fails within seconds
    folder = found
    where: dict[str, Any] = {}
    how: dict[str, Any] = {}
    if found.is_file():
        folder, where = found.parent, {"gguf_file": found.name}
    else:
        how = {"config": plain_config(found)}
    loader: Any = AutoModelForCausalLM.from_pretrained
    model, info = loader(
        folder,
        dtype=torch.float32,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
        **where,
        **how,
    )
    check_complete(info, found)
    if where:  # a model read from GGUF refuses save_pretrained
        fresh = type(model)(model.config)
        fresh.load_state_dict(model.state_dict())
        fresh.generation_config = model.generation_config
        _drop_gguf_mark(fresh.config)
        model = fresh
    if adapter is not None:
        model = _merged(model, adapter)
    _check_finite(model, found)
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    if not (work / "tokenizer.json").is_file():
        raise ModelUnusable(f"{found} has no tokenizer that can be saved as tokenizer.json.")


def _tokenizer(found: Path, report: Report) -> Any:
    """The transformers tokenizer of a folder or a .gguf file, to be saved.

    For .gguf files ``gguf_tokenizer`` is used: transformers ignores the pre-tokenizer's name.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415

    if found.is_dir():
        own = found / "tokenizer.json"
        if own.is_file():  # a malicious one must not crash the library in this process
            SafeTokenizer(own.read_text(encoding="utf-8")).close()
        return AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    read = read_gguf_tokenizer(found, report)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read.tokenizer, clean_up_tokenization_spaces=False, **read.roles
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


def _merged(model: Any, adapter: str) -> Any:
    """Merge an adapter into a model; PEFT only warns about an adapter's missing tensors."""
    from peft import PeftModel  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    messages = (str(warning.message) for warning in caught)
    message = next((text for text in messages if "missing adapter keys" in text), None)
    if message is not None:
        raise ModelUnusable(f"The adapter {adapter} does not fit: {in_one_line(Warning(message))}")
    return merged


def _check_finite(model: Any, found: Path) -> None:
    """Check that every weight is finite; a damaged file or a wrong scale causes others."""
    import torch  # noqa: PLC0415

    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelUnusable(f"{found}: the tensor {name} contains values that are not finite.")


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
