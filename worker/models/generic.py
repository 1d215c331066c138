"""Any other causal language model of transformers, a row at a time: slower, and says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from worker.models.errors import ModelUnusable
from worker.models.runner import PREFILL_CHUNK_TOKENS, Row


class GenericRunner:
    """Runs a transformers model with one dynamic cache a slot."""

    def __init__(self, folder: Path, dtype: torch.dtype, num_slots: int) -> None:
        """Load the model with transformers.

        Raises:
            ModelUnusable: transformers cannot.
        """
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False
            ).eval()
        except Exception as error:  # transformers raises all sorts for what it does not know
            raise ModelUnusable(f"{folder} cannot be loaded by transformers: {error}") from error
        config = self._model.config
        self.context_length = int(getattr(config, "max_position_embeddings", 2048))
        self.vocabulary_size = int(config.vocab_size)
        self.num_parameters = int(self._model.num_parameters())
        self._caches: list[Any] = [None] * num_slots

    def prefill(self, row: Row) -> None:
        """Take the next chunk of a prompt into the slot's cache."""
        end = min(row.num_cached + PREFILL_CHUNK_TOKENS, len(row.ids) - 1)
        self._forward(row, end)

    def decode(self, rows: Sequence[Row]) -> Tensor:
        """Logits (rows, vocabulary) float32 after the last token of every row."""
        return torch.cat([self._forward(row, len(row.ids)) for row in rows])

    def rest(self) -> None:
        """Drop the caches."""
        self._caches = [None] * len(self._caches)

    @torch.inference_mode()
    def _forward(self, row: Row, end: int) -> Tensor:
        if row.num_cached == 0:
            self._caches[row.slot] = DynamicCache()
        tokens = torch.tensor([row.ids[row.num_cached : end]])
        output = self._model(
            tokens, past_key_values=self._caches[row.slot], use_cache=True, logits_to_keep=1
        )
        row.num_cached = end
        logits: Tensor = output.logits[:, -1].float()
        return logits
