"""Converts a model into a folder of config.json, safetensors and tokenizer files.

GGUF files of the Llama family and plain LoRA adapters are converted with NumPy; everything else
with transformers and PEFT.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.processors import TemplateProcessing

from textmill.engine.models.checkpoint import Checkpoint, is_plain, weight_files
from textmill.engine.models.errors import ModelUnusable, check_complete, in_one_line
from textmill.engine.models.families import bare_name, describe
from textmill.engine.models.gguf_tokenizer import read_gguf_tokenizer
from textmill.engine.models.gguf_weights import convert_gguf
from textmill.engine.models.lora import read_lora
from textmill.engine.models.safetensors_writer import Float32, write_float32
from textmill.engine.models.shapes import check_tensors
from textmill.tokenizing.safe_tokenizer import SafeTokenizer

Report = Callable[[str], None]
_NO_MAXIMUM = int(1e30)  # transformers' model_max_length of a tokenizer that has none
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def write_plain_model(found: Path, adapter: str | None, work: Path, report: Report) -> None:
    """Write config.json, safetensors and tokenizer files.

    Args:
        found: a folder, or a .gguf file.
        adapter: a PEFT adapter's folder, to be merged.
        work: an empty folder.
        report: is called with a sentence about what is not as expected.

    Raises:
        ModelUnusable: the files are damaged or do not fit. Other errors of transformers and PEFT,
            which have many types, pass through.
    """
    if adapter is None and found.is_file() and _save_gguf(found, work, report):
        return
    if adapter is not None and found.is_dir() and _save_merged(found, Path(adapter), work):
        return
    _save_with_transformers(found, adapter, work, report)


def _save_gguf(found: Path, work: Path, report: Report) -> bool:
    read = read_gguf_tokenizer(found, report)  # first, because it fails within a second
    if not convert_gguf(found, work):
        return False
    config = _json_object(work / "config.json") or {}
    if (spec := describe(config)) is not None:  # the file's own numbers may contradict each other
        check_tensors(spec, config, Checkpoint(weight_files(work)).entries)
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
    if config is None or spec is None or not is_plain(found):
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
