"""Any other causal language model of transformers, a row at a time: slower, and says so."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from worker.models.errors import ModelUnusable, in_one_line
from worker.models.runner import PREFILL_CHUNK_TOKENS, Row

UNKNOWN_CONTEXT_TOKENS = 2048  # for a config that does not say; most models hold this much


class GenericRunner:
    """Runs a transformers model with one dynamic cache a slot."""

    def __init__(self, folder: Path, dtype: torch.dtype, num_slots: int) -> None:
        """Load the model with transformers, and try that it can go on from a cache.

        Raises:
            ModelUnusable: it cannot.
        """
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False
            ).eval()
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
        self._caches: list[Any] = [None] * num_slots

    def prefill(self, row: Row) -> None:
        """Take the next chunk of a prompt into the slot's cache."""
        self._forward(row, min(row.num_cached + PREFILL_CHUNK_TOKENS, len(row.ids) - 1))

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        return torch.cat([self._forward(row, len(row.ids)) for row in rows])

    def wipe(self, row: Row) -> None:
        """Drop the row's cache."""
        self._caches[row.slot] = None

    def rest(self) -> None:
        """Drop the caches."""
        self._caches = [None] * len(self._caches)

    def _forward(self, row: Row, end: int) -> Tensor:
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
