"""The model that a fine-tuning starts from: found as the worker finds it, loaded to be trained."""

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
from textmill.engine.models.errors import ModelLoadError, in_one_line
from textmill.engine.models.sources import plain_config, prepare
from textmill.finetune.config import FinetuneConfig
from textmill.finetune.encoding import Encoder
from textmill.finetune.errors import ConfigError

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base in save_pretrained layout.

    Attributes:
        source: as the models file would have it.
        folder: where its files are.
        revision: a hash of its weights, config and tokenizer.
        context_length: tokens that it can see at once.
        eos_token_id: the token that ends a text.
    """

    source: str
    folder: Path
    revision: str
    context_length: int
    eos_token_id: int

    def encoder(self, max_tokens: int) -> Encoder:
        """Its tokenizer, for examples of at most so many tokens."""
        return Encoder(self.folder / "tokenizer.json", self.eos_token_id, max_tokens)

    def tokenizer(self) -> Any:
        """Its tokenizer as transformers has it, with a token to pad with."""
        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self.eos_token_id
        return tokenizer

    def trainable(self, config: FinetuneConfig) -> Any:
        """Its weights in float32, with low-rank matrices beside them where the method says so.

        Raises:
            ConfigError: the model has no layers of the names that ``lora.targets`` gives.
        """
        model = AutoModelForCausalLM.from_pretrained(
            self.folder,
            config=plain_config(self.folder),
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
        )
        model.config.use_cache = False
        set_seed(config.seed % (1 << 32))  # the low-rank matrices begin at random
        if config.method == "full":
            return model
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
        # PEFT writes the folder it was loaded from, which another machine does not have.
        adapted.peft_config["default"].base_model_name_or_path = self.source
        return adapted


def find_base(
    config: FinetuneConfig, catalog: Catalog, cache_dir: Path, report: Report
) -> BaseModel:
    """Look a base up in the models file, else take it as a source, and bring it here.

    Raises:
        ConfigError: it cannot be found, cannot be trained, or sees less than ``data.max_tokens``.
    """
    known = {spec.name: spec for spec in catalog}
    spec = known.get(config.base)
    source = spec.source if spec is not None else config.base
    if spec is None and Path(source).expanduser().exists():  # the reports must lead there too
        source = str(Path(source).expanduser().absolute())
    adapter = spec.adapter if spec is not None else None
    if adapter is not None:
        raise ConfigError(
            f"base {config.base!r} is itself a base with an adapter; fine-tune its base,"
            f" {source!r}, on both kinds of data instead."
        )
    try:
        prepared = prepare(source, None, cache_dir, report)
    except ModelLoadError as error:
        raise ConfigError(f"base {config.base!r} cannot be used: {error}") from error
    found = AutoConfig.from_pretrained(prepared.folder, trust_remote_code=False)
    context_length = int(getattr(found, "max_position_embeddings", 0) or 1 << 20)
    if config.data.max_tokens > context_length:
        raise ConfigError(
            f"data.max_tokens is {config.data.max_tokens}, and {config.base} sees"
            f" {context_length}; lower it."
        )
    eos_token_id = _eos_token_id(prepared.folder, found)
    return BaseModel(source, prepared.folder, prepared.revision, context_length, eos_token_id)


def _eos_token_id(folder: Path, config: Any) -> int:
    """Of several, the one that the server takes first."""
    generation = folder / "generation_config.json"
    found: Any = None
    if generation.exists():
        found = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
    found = config.eos_token_id if found is None else found
    ids = [found] if isinstance(found, int) else list(found or [])
    if not ids:
        raise ConfigError(
            f"{folder} names no token that ends a text (eos_token_id in its config.json), so the"
            " model could not learn to end; add one."
        )
    return int(ids[0])
