"""A model with known logits, and a tokenizer that is simply characters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.loading import LoadedModel, ModelInfo
from textmill.engine.models.prefixes import num_shared
from textmill.engine.models.runner import PREFILL_CHUNK_TOKENS
from textmill.engine.models.tokenizer import TextTokenizer

VOCABULARY_SIZE = 128
EOS = 0  # the character NUL

LogitsOf = Callable[[list[int]], Tensor]  # ids so far -> (vocabulary,) float32


class FakeTokenizer:
    """Token ids are code points below 128."""

    json = "{}"
    is_bytes = may_end_in_half = False

    def may_be_half(self, token: int) -> bool:
        return False

    def special_text(self, token: int) -> str:
        return "<|end|>" if token == EOS else ""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(token) for token in ids if token != EOS)

    def text_of(self, token: int) -> str:
        return chr(token)


class FakeRunner:
    """Computes logits by a function of the tokens; keeps no cache."""

    bytes_per_token = 10
    is_ragged = True

    def __init__(self, logits_of: LogitsOf) -> None:
        self._logits_of = logits_of
        self.num_decode_steps = 0
        self.batch_sizes: list[int] = []
        self.slots_seen: list[set[int]] = []
        self.wiped: list[int] = []
        self.released: list[int] = []
        self.prefilled: list[tuple[int, int, int]] = []  # slot, from, to
        self.decoding_seen: list[int] = []  # rows, when prompt tokens were shared out
        self.prefill_batches: list[int] = []  # chunks
        self.prefill_gate: threading.Event | None = None  # as gate
        self.kept: list[list[int]] = []
        self.forks: list[tuple[int, int, int, int]] = []
        self.gate: threading.Event | None = None  # where set, a step waits for it

    def chunk_tokens(self, num_decoding: int) -> int:
        self.decoding_seen.append(num_decoding)
        return PREFILL_CHUNK_TOKENS

    def prefill(self, chunks: Sequence[tuple[BatchEntry, int]]) -> None:
        if self.prefill_gate is not None and not self.prefill_gate.wait(30):
            raise TimeoutError("nobody opened the gate")
        self.prefill_batches.append(len(chunks))
        for row, end in chunks:
            self.prefilled += [(row.slot, row.num_cached, end)]
            row.num_cached = end

    def score(self, ids: list[int], slot: int = 0) -> Tensor:
        return torch.stack([self._logits_of(ids[: n + 1]) for n in range(len(ids))])

    def recall(self, row: BatchEntry) -> None:
        for known in self.kept:
            shared = num_shared(known, row.ids[:-1])
            row.num_cached = max(row.num_cached, shared)

    def keep(self, row: BatchEntry) -> None:
        self.kept.append(row.ids[: row.num_cached])

    def log_softmax(self, logits: Tensor) -> NDArray[np.float32]:
        return np.asarray(torch.log_softmax(logits, -1))

    def fork(self, source: int, target: int, start: int, end: int) -> None:
        self.forks.append((source, target, start, end))

    def release(self, slot: int) -> None:
        self.released.append(slot)

    def decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        if self.gate is not None and not self.gate.wait(30):
            raise TimeoutError("nobody opened the gate")
        self.num_decode_steps += 1
        self.batch_sizes.append(len(rows))
        self.slots_seen.append({row.slot for row in rows})
        for row in rows:
            row.num_cached = len(row.ids)
        return torch.stack([self._logits_of(row.ids) for row in rows])

    def wipe(self, slot: int, num_positions: int) -> None:
        self.wiped.append(slot)

    def rest(self) -> None:
        pass


def fake_model(
    logits_of: LogitsOf, *, name: str = "fake", context_length: int = 100_000
) -> tuple[LoadedModel, FakeRunner]:
    """A model whose logits are ``logits_of(ids)``."""
    runner = FakeRunner(logits_of)
    info = ModelInfo(
        family="fake",
        path="native",
        num_parameters=0,
        context_length=context_length,
        vocabulary_size=VOCABULARY_SIZE,
        dtype="float32",
        revision="fake",
        eos_token_ids=frozenset({EOS}),
    )
    return LoadedModel(name, runner, cast(TextTokenizer, FakeTokenizer()), info), runner


def one_hot(token: int) -> Tensor:
    """Logits that leave no doubt."""
    logits = torch.zeros(VOCABULARY_SIZE)
    logits[token] = 30.0
    return logits


def spelling(text: str, prompt: str) -> LogitsOf:
    """Continues a prompt of that length with ``text``, over and over where it ends in no NUL."""

    def logits_of(ids: list[int]) -> Tensor:
        return one_hot(ord(text[(len(ids) - len(prompt)) % len(text)]))

    return logits_of
