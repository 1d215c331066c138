"""The output folder of a fine-tuning: weights, tokenizer, options, figures, curve and card."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import platform
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomlkit
import torch

from textmill.finetune.card import model_card
from textmill.finetune.card_facts import collect_card_facts
from textmill.finetune.curve import loss_curve_svg
from textmill.finetune.errors import ConfigError
from textmill.finetune.formats import TEMPLATES
from textmill.finetune.result import FinetuningResult

FINETUNE_FILE = "finetune.json"  # read by `textmill register` and by the worker
CURVE_FILE = "loss.svg"
CONFIG_FILE = "finetune.toml"
CARD_FILE = "README.md"
_LIBRARIES = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers")


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save an adapter or all weights as safetensors, with the tokenizer.

    Low-rank matrices are rounded to bfloat16, which halves the file. Evaluation and serving use the
    rounded matrices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        model.save_pretrained(folder)
        (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT's empty template
    else:
        model.config.use_cache = True
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # written readable by their owner alone
        path.chmod((folder / "tokenizer_config.json").stat().st_mode)


def check_output(folder: Path) -> None:
    """Check, before any work, that the output folder can be created.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be created.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} already exists; name another folder with --output, or move it away."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}; name another folder with"
            " --output."
        ) from error


def write_report(folder: Path, result: FinetuningResult) -> None:
    """Write options, figures, curve and card into the folder that contains the weights."""
    config, history = result.config, result.history
    _write(folder / CONFIG_FILE, config_toml(result))
    _write(
        folder / FINETUNE_FILE,
        json.dumps(_document(result), indent=2, ensure_ascii=False) + "\n",
    )
    curve = loss_curve_svg(history.training, history.validation, f"Loss of {config.name}")
    _write(folder / CURVE_FILE, curve)
    _write(folder / CARD_FILE, model_card(collect_card_facts(result, CURVE_FILE)))


def move_into_place(work: Path, folder: Path) -> None:
    """Move the finished folder to the output path; the output is never incomplete.

    Renames it, or copies it first if the state folder is on another file system.

    Raises:
        ConfigError: the output path was created by another program during the training.
    """
    check_output(folder)
    if folder.exists():
        folder.rmdir()
    try:
        work.rename(folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(copy, ignore_errors=True)  # left by an interrupted copy
        shutil.copytree(work, copy)
        copy.rename(folder)


def config_toml(result: FinetuningResult) -> str:
    """Every option with its resolved value; data files without folders, so it runs elsewhere."""
    config, data = result.config, result.data
    document = config.model_dump(mode="json", exclude_none=True)
    document["base"] = result.base.source
    document.pop("output", None)
    if data.format in TEMPLATES or data.format == "messages":
        document["data"]["format"] = data.format
    for key, roles in (("train", {"training", "both"}), ("validation", {"validation"})):
        document["data"][key] = [file.name for file in data.files if file.role in roles]
    document["training"]["learning_rate"] = config.learning_rate
    text = tomlkit.document()
    text.add(tomlkit.comment(f"Every option of this model's training; data: see {CARD_FILE}."))
    for key, value in document.items():
        text[key] = value
    return tomlkit.dumps(text)


def _document(result: FinetuningResult) -> dict[str, Any]:
    config, base, data = result.config, result.base, result.data
    return {
        "name": config.name,
        "description": config.description,
        "base": base.source,
        "base_revision": base.revision,
        "method": config.method,
        "seed": config.seed,
        "data": {
            "format": data.format,
            "files": [asdict(file) for file in data.files],
            "training": asdict(data.train_counts) | {"num_examples": len(data.train)},
            "validation": asdict(data.validation_counts) | {"num_examples": len(data.validation)},
            "num_duplicates": data.num_duplicates,
            "num_overlapping": data.holdout.overlaps.count,
            "is_packed": data.is_packed,
        },
        "training": asdict(result.history) | {"hardware": result.hardware},
        "metrics": {name: metrics.as_json() for name, metrics in result.metrics.items()},
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "fingerprint": data.fingerprint,
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
