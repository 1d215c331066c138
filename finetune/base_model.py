"""The base model of a fine-tuning: found as the worker finds models, loaded for training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from textmill.core.catalog.models_file import Catalog
from textmill.core.paths import expand_home
from textmill.engine.models.conversion import plain_config
from textmill.engine.models.errors import ModelLoadError, in_one_line
from textmill.engine.models.sources import prepare
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.encoding import Encoder
from textmill.finetune.errors import ConfigError

Report = Callable[[str], None]
"""Receives one sentence of progress."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model in save_pretrained layout.

    Attributes:
        source: the source as in the models file.
        folder: the folder that contains its files.
        revision: a hash of its weights, config and tokenizer.
        context_length: the maximum number of tokens in its context.
        eos_token_id: the end-of-text token.
    """

    source: str
    folder: Path
    revision: str
    context_length: int
    eos_token_id: int

    def encoder(self, max_tokens: int) -> Encoder:
        """Its tokenizer, for examples of at most ``max_tokens`` tokens."""
        return Encoder(self.folder / "tokenizer.json", self.eos_token_id, max_tokens)

    def tokenizer(self) -> Any:
        """Its tokenizer as a transformers object, with a padding token."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self.eos_token_id
        return tokenizer

    def trainable(self, config: FinetuneConfig) -> Any:
        """Load its weights in float32; with the method ``lora``, add low-rank matrices.

        Raises:
            ConfigError: the model has no layers with the names in ``lora.targets``.
        """
        model = AutoModelForCausalLM.from_pretrained(
            self.folder,
            config=plain_config(self.folder),
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
        )
        model.config.use_cache = False
        set_seed(config.seed % (1 << 32))  # the low-rank matrices are initialised at random
        return model if config.method == "full" else self._with_lora(model, config)

    def _with_lora(self, model: Any, config: FinetuneConfig) -> Any:
        targets = config.lora.targets
        lora = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules=targets[0] if targets == ("all-linear",) else list(targets),
            task_type="CAUSAL_LM",
        )
        try:
            adapted = get_peft_model(model, lora)
        except ValueError as error:
            raise ConfigError(
                f"lora.targets {list(targets)} cannot be used: {in_one_line(error)}"
            ) from error
        # By default PEFT records the local folder, which does not exist on other machines.
        adapted.peft_config["default"].base_model_name_or_path = self.source
        return adapted


def find_base(
    config: FinetuneConfig, catalog: Catalog, cache_dir: Path, report: Report
) -> BaseModel:
    """Find the base by its name in the models file, or else as a source, and fetch its files.

    Args:
        config: the options; ``base`` is the name or the source.
        catalog: the models file.
        cache_dir: for converted models.
        report: receives progress.

    Raises:
        ConfigError: the base cannot be found, cannot be trained, or has a context shorter than
            ``data.max_tokens``.
    """
    source = _find_source(config.base, catalog)
    try:
        prepared = prepare(source, None, cache_dir, report)
    except ModelLoadError as error:
        raise ConfigError(f"base {config.base!r} cannot be used: {error}") from error
    model_config = AutoConfig.from_pretrained(prepared.folder, trust_remote_code=False)
    context_length = int(getattr(model_config, "max_position_embeddings", 0) or 1 << 20)
    if config.data.max_tokens > context_length:
        raise ConfigError(
            f"data.max_tokens is {config.data.max_tokens}, but the context of {config.base} is"
            f" {context_length} tokens; lower it."
        )
    eos_token_id = _eos_token_id(prepared.folder, model_config)
    return BaseModel(source, prepared.folder, prepared.revision, context_length, eos_token_id)


def _find_source(base: str, catalog: Catalog) -> str:
    spec = next((spec for spec in catalog if spec.name == base), None)
    if spec is None:
        path = expand_home(base)
        # Absolute, because the written reports must lead to the same folder.
        return str(path.absolute()) if path.exists() else base
    if spec.adapter is not None:
        raise ConfigError(
            f"base {base!r} is itself a base with an adapter; fine-tune its base,"
            f" {spec.source!r}, on both data sets instead."
        )
    return spec.source


def _eos_token_id(folder: Path, config: Any) -> int:
    """The end-of-text token; if the config lists several, the first, as the server does."""
    generation = folder / "generation_config.json"
    found: Any = None
    if generation.exists():
        found = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
    found = config.eos_token_id if found is None else found
    ids = [found] if isinstance(found, int) else list(found or [])
    if not ids:
        raise ConfigError(
            f"{folder} has no end-of-text token (eos_token_id in config.json), so the model could"
            " not learn to end a completion; add one."
        )
    return int(ids[0])
