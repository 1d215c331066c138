"""Any other causal language model of transformers, a row at a time: slower, and says so."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.errors import ModelUnusable, check_complete, in_one_line
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS

UNKNOWN_CONTEXT_TOKENS = 2048  # for a config that does not say; most models hold this much


class GenericRunner:
    """Runs a transformers model with one dynamic cache a slot."""

    is_ragged = False

    def __init__(self, folder: Path, dtype: torch.dtype, num_slots: int) -> None:
        """Load the model with transformers, and try that it can go on from a cache.

        Raises:
            ModelUnusable: it cannot.
        """
        try:
            # Not mapped: weights that are overwritten later are not to change texts.
            loader: Any = AutoModelForCausalLM.from_pretrained
            model, report = loader(
                folder,
                dtype=dtype,
                trust_remote_code=False,
                disable_mmap=True,
                output_loading_info=True,
            )
            check_complete(report, folder)
            self._model: Any = model.eval()
            takes = inspect.signature(self._model.forward).parameters
            self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
            cache = DynamicCache()
            for _ in range(2):
                self._logits([0], cache)
            if cache.get_seq_length() != 2:
                raise ModelUnusable(f"{folder}: {type(self._model).__name__} keeps no such cache.")
        except ModelUnusable:
            raise
        except Exception as error:  # transformers raises all sorts for what it does not know
            raise ModelUnusable(
                f"{folder} cannot be served as a causal language model by transformers:"
                f" {in_one_line(error)}"
            ) from error
        config = self._model.config.get_text_config()
        self.context_length = int(
            getattr(config, "max_position_embeddings", None) or UNKNOWN_CONTEXT_TOKENS
        )
        self.vocabulary_size = int(config.vocab_size)
        self.num_parameters = int(self._model.num_parameters())
        self.bytes_per_token = _bytes_per_token(config, dtype)
        self._caches: list[Any] = [None] * num_slots

    def chunk_tokens(self, num_decoding: int) -> int:
        """Prompt tokens to take between two steps."""
        return PREFILL_CHUNK_TOKENS

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Take each row's tokens into its slot's cache up to the place given."""
        for row, end in chunks:
            if end > row.num_cached:
                self._forward(row, end)

    def decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        return torch.cat([self._forward(row, len(row.ids)) for row in rows])

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after every token of a text."""
        with torch.inference_mode():
            logits: Tensor = self._model(torch.tensor([ids])).logits[0].float()
        return logits

    def recall(self, row: BatchEntry) -> None:
        """Nothing is known here: a prompt's beginning is computed anew."""

    def keep(self, row: BatchEntry) -> None:
        """Nothing is kept."""

    def fork(self, source: int, target: int, start: int, end: int) -> None:
        """Copy a slot's whole cache to another."""
        self._caches[target] = copy.deepcopy(self._caches[source])

    def release(self, slot: int) -> None:
        """Drop the slot's cache."""
        self._caches[slot] = None

    def wipe(self, slot: int, num_positions: int) -> None:
        """Drop the slot's cache."""
        self._caches[slot] = None

    def rest(self) -> None:
        """Drop the caches."""
        self._caches = [None] * len(self._caches)

    def _forward(self, row: BatchEntry, end: int) -> Tensor:
        if row.num_cached == 0:
            self._caches[row.slot] = DynamicCache()
        logits = self._logits(row.ids[row.num_cached : end], self._caches[row.slot])
        row.num_cached = end
        return logits

    @torch.inference_mode()
    def _logits(self, ids: list[int], cache: Any) -> Tensor:
        output = self._model(
            torch.tensor([ids]), past_key_values=cache, use_cache=True, **self._options
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """What a token's keys and values take, as far as the config says."""
    heads = getattr(config, "num_attention_heads", 1)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)
