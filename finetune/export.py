"""The folder that a fine-tuning leaves: weights, tokenizer, options, figures, curve, card."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomlkit
import torch

from textmill.finetune.base_model import BaseModel
from textmill.finetune.card import CardFacts, DataFacts, TrainingFacts, model_card
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.curve import loss_curve_svg
from textmill.finetune.errors import ConfigError
from textmill.finetune.evaluation import Metrics
from textmill.finetune.formats import TEMPLATES
from textmill.finetune.preparation import Prepared
from textmill.finetune.training import TrainingHistory

FINETUNE_FILE = "finetune.json"  # what `textmill register` and the page of models read
CURVE_FILE = "loss.svg"
CONFIG_FILE = "finetune.toml"
CARD_FILE = "README.md"
_LIBRARIES = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers")


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write an adapter, or all weights, as safetensors, with the tokenizer.

    Low-rank matrices are rounded to bfloat16, which halves the file; what was rounded is what is
    evaluated and served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
        model.save_pretrained(folder)
        (folder / CARD_FILE).unlink(missing_ok=True)  # PEFT's, an empty form
    else:
        model.config.use_cache = True
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):  # which only its owner could read
        path.chmod((folder / "tokenizer_config.json").stat().st_mode)


def check_output(folder: Path) -> None:
    """Refuse to write over something, and what could not be written in the end.

    Raises:
        ConfigError: the folder is there and not empty, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is there already; name another folder with --output, or move it away."
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


def write_report(
    folder: Path,
    config: FinetuneConfig,
    base: BaseModel,
    data: Prepared,
    history: TrainingHistory,
    metrics: Mapping[str, Metrics],
    hardware: str,
) -> None:
    """Write everything but the weights.

    Args:
        folder: where the weights are.
        config: the options.
        base: what was started from.
        data: what was learned.
        history: of the training.
        metrics: ``before`` and ``after``.
        hardware: in words, no machine's name.
    """
    _write(folder / CONFIG_FILE, config_toml(config, base, data))
    document = _document(config, base, data, history, metrics, hardware)
    _write(folder / FINETUNE_FILE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    curve = loss_curve_svg(history.training, history.validation, f"Loss of {config.name}")
    _write(folder / CURVE_FILE, curve)
    facts = _card_facts(config, base, data, history, metrics, hardware)
    _write(folder / CARD_FILE, model_card(facts))


def move_into_place(work: Path, folder: Path) -> None:
    """Rename, or copy where the state folder is on another disk; never half a folder.

    Raises:
        ConfigError: something came to lie there during the training.
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
        shutil.rmtree(copy, ignore_errors=True)  # of one that was interrupted
        shutil.copytree(work, copy)
        copy.rename(folder)


def config_toml(config: FinetuneConfig, base: BaseModel, data: Prepared) -> str:
    """Every option as it was resolved; files by their names, so that it runs elsewhere too."""
    document = config.model_dump(mode="json", exclude_none=True)
    document["base"] = base.source
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


def hardware_words(device: str) -> str:
    """Kind and number of processors, for a report."""
    if device != "cpu":
        return f"{torch.cuda.device_count()} x {device}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def num_repeats(data: Prepared) -> int:
    """Examples of either side that were dropped because the same text came before."""
    return data.holdout.train_repeats.count + data.holdout.validation_repeats.count


def _document(
    config: FinetuneConfig,
    base: BaseModel,
    data: Prepared,
    history: TrainingHistory,
    metrics: Mapping[str, Metrics],
    hardware: str,
) -> dict[str, Any]:
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
            "num_duplicates": num_repeats(data),
            "num_overlapping": data.holdout.overlaps.count,
            "is_packed": data.is_packed,
        },
        "training": asdict(history) | {"hardware": hardware},
        "metrics": {name: found.as_json() for name, found in metrics.items()},
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "fingerprint": data.fingerprint,
    }


def _card_facts(
    config: FinetuneConfig,
    base: BaseModel,
    data: Prepared,
    history: TrainingHistory,
    metrics: Mapping[str, Metrics],
    hardware: str,
) -> CardFacts:
    counts = data.train_counts
    options: dict[str, Any] = {"seed": config.seed}
    options |= config.lora.model_dump(mode="json") if config.method == "lora" else {}
    options |= config.training.model_dump(mode="json", exclude_none=True)
    options |= {"learning_rate": config.learning_rate, "precision": history.precision}
    return CardFacts(
        name=config.name,
        description=config.description,
        base_model=Path(base.source).name if Path(base.source).is_absolute() else base.source,
        license=None,
        library="peft" if config.method == "lora" else "transformers",
        data=DataFacts(
            files=data.files,
            format=data.format,
            num_training=len(data.train),
            num_validation=len(data.validation),
            num_duplicates=num_repeats(data),
            num_overlapping=data.holdout.overlaps.count,
            num_truncated=counts.num_cut_texts,
            num_cut_tokens=counts.num_cut_tokens,
            max_tokens=config.data.max_tokens,
        ),
        training=TrainingFacts(
            method=config.method,
            options=tuple((name, str(value)) for name, value in sorted(options.items())),
            num_steps=history.num_steps,
            best_step=history.best_step,
            num_tokens=history.num_tokens,
            seconds=history.seconds,
            hardware=hardware,
        ),
        before=metrics["before"],
        after=metrics["after"],
        curve=CURVE_FILE,
        is_multi_xscience=data.format == "multi_xscience",
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
