"""The generic runtime: any causal language model of transformers, one sequence at a time."""

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
from textmill.engine.models.torch_runner import log_softmax
from textmill.engine.models.weights import Float32

UNKNOWN_CONTEXT_TOKENS = 2048  # if the config has no context length; most models have this much


class GenericRunner:
    """Runs a transformers model with a dynamic cache for each slot."""

    is_ragged = False

    def __init__(self, folder: Path, dtype: str, num_slots: int) -> None:
        """Load the model in float32 or bfloat16, and check that it can continue from a cache.

        Raises:
            ModelUnusable: it cannot be loaded, or cannot continue from a cache.
        """
        self.dtype = dtype
        self._dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        try:
            # Not mapped: a file that is overwritten later must not change the weights.
            loader: Any = AutoModelForCausalLM.from_pretrained
            model, report = loader(
                folder,
                dtype=self._dtype,
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
                raise ModelUnusable(
                    f"{folder}: {type(self._model).__name__} does not support a dynamic cache."
                )
        except ModelUnusable:
            raise
        except Exception as error:  # transformers raises errors of many types
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
        self.bytes_per_token = _bytes_per_token(config, self._dtype)
        self._caches: list[Any] = [None] * num_slots

    def chunk_tokens(self, num_decoding: int) -> int:
        """The number of prompt tokens to compute between two steps."""
        return PREFILL_CHUNK_TOKENS

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        """Compute each entry's tokens up to the given position into its slot's cache."""
        for entry, end in chunks:
            if end > entry.num_cached:
                self._forward(entry, end)

    def decode(self, entries: Sequence[BatchEntry]) -> Tensor:
        """Logits (entries, vocabulary) float32 after the last token of each entry."""
        return torch.cat([self._forward(entry, len(entry.ids)) for entry in entries])

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        """Logits (len(ids), vocabulary) float32 after each token of ``ids``."""
        with torch.inference_mode():
            logits: Tensor = self._model(torch.tensor([ids])).logits[0].float()
        return logits

    def recall(self, entry: BatchEntry) -> None:
        """Do nothing: this runtime has no prefix cache."""

    def keep(self, entry: BatchEntry) -> None:
        """Do nothing: this runtime has no prefix cache."""

    def log_softmax(self, logits: Tensor) -> Float32:
        """The logarithms of the probabilities, (rows, vocabulary) float32, of such logits."""
        return log_softmax(logits)

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

    def _forward(self, entry: BatchEntry, end: int) -> Tensor:
        if entry.num_cached == 0:
            self._caches[entry.slot] = DynamicCache()
        logits = self._logits(entry.ids[entry.num_cached : end], self._caches[entry.slot])
        entry.num_cached = end
        return logits

    @torch.inference_mode()
    def _logits(self, ids: list[int], cache: Any) -> Tensor:
        output = self._model(
            torch.tensor([ids]), past_key_values=cache, use_cache=True, **self._options
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """The size of a token's keys and values, as far as the config describes it."""
    heads = getattr(config, "num_attention_heads", 1)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)
