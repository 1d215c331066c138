"""The decoder's step on a GPU: static shapes, recorded once as CUDA graphs and replayed.

Launching a small model's kernels one by one takes longer than they run; a recorded step is
launched as one. A record is bound to addresses and shapes, so there is one for each bucket of live
positions, made when it is first met, those of short texts before the worker is ready. On a device
without graphs the same static step runs as it is, which is how it is tested.

Row i of a step is slot i of the cache, and all slots compute in every step: libraries choose their
kernels, and so the order of their sums, by the number of rows, and a text must be the same whatever
is decoded beside it. A small model's step takes about as long for one row as for all of them, since
the weights are read once either way. What a slot computes that takes no part goes to a position
behind the context, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textmill.engine.models.attention import Step
from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.cache import KV_BLOCK_TOKENS
from textmill.engine.models.decoder import Decoder
from textmill.engine.models.runner import TorchRunner

NUM_WARM_CALLS = 2  # before a record, so that libraries have chosen their kernels
READY_KV_TOKENS = 256  # records of so many positions are made before the worker is ready


@dataclass(frozen=True, slots=True)
class StaticStep:
    """A step of one shape.

    Attributes:
        places: (3, slots) int64 on the device: tokens, positions, and where keys are written.
        logits: (slots, vocabulary) float32, written by ``play``.
        play: computes.
    """

    places: Tensor
    logits: Tensor
    play: Callable[[], None]


class GraphRunner(TorchRunner):
    """Runs our own decoder in recorded steps."""

    def __init__(self, decoder: Decoder, num_slots: int, *, prefix_bytes: int) -> None:
        """Keep the decoder; ``num_slots`` is what its cache was made for."""
        super().__init__(decoder, prefix_bytes=prefix_bytes)
        self._num_slots = num_slots
        self._kv_buckets = buckets(KV_BLOCK_TOKENS, decoder.spec.context_length)
        self._steps: dict[int, StaticStep] = {}
        self._pool: Any = None  # memory that the records share

    @property
    def num_steps(self) -> int:
        """Shapes that were met so far."""
        return len(self._steps)

    def warm_up(self) -> None:
        """Record the shapes that short texts need."""
        for live in self._kv_buckets:
            if live <= READY_KV_TOKENS:
                self._step(live)

    @torch.inference_mode()
    def _decode(self, rows: Sequence[BatchEntry]) -> Tensor:
        """Logits (rows, vocabulary) float32 on the host, after the last token of every row."""
        step = self._step(bucket_of(self._kv_buckets, max(len(row.ids) for row in rows)))
        places = torch.zeros(3, self._num_slots, dtype=torch.int64)
        places[2] = self._decoder.cache.capacity - 1
        for row in rows:
            places[:, row.slot] = torch.tensor([row.ids[-1], len(row.ids) - 1, len(row.ids) - 1])
        step.places.copy_(places)
        step.play()
        logits = step.logits[[row.slot for row in rows]].cpu()
        for row in rows:
            row.num_cached = len(row.ids)
        return logits

    def _step(self, live: int) -> StaticStep:
        found = self._steps.get(live)
        if found is None:
            found = self._steps[live] = self._recorded(live)
        return found

    @torch.inference_mode()
    def _recorded(self, live: int) -> StaticStep:
        decoder = self._decoder
        device = decoder.device
        places = torch.zeros(3, self._num_slots, dtype=torch.int64, device=device)
        places[2] = decoder.cache.capacity - 1
        logits = torch.zeros(self._num_slots, decoder.spec.vocabulary_size, device=device)

        def compute() -> None:
            logits.copy_(self._compute(places, live))

        if device.type != "cuda":
            return StaticStep(places, logits, compute)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_CALLS):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            compute()
        self._pool = graph.pool()
        return StaticStep(places, logits, graph.replay)

    def _compute(self, places: Tensor, live: int) -> Tensor:
        """One token for every slot; everything stays on the device."""
        decoder = self._decoder
        tokens, positions, writes = places
        num_rows = len(tokens)
        slots = torch.arange(num_rows, device=places.device)
        step = Step(
            num_rows,
            1,
            live,
            decoder.write_places(writes[:, None], slots),
            slice(0, num_rows),
            None,
            decoder.visible(positions[:, None], live),
            *decoder.turns(positions),
        )
        return decoder.logits(decoder.run(tokens, positions, step))[:num_rows]


def buckets(first: int, last: int) -> tuple[int, ...]:
    """Sizes to round up to: doubling from ``first``, until ``last`` fits."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(sizes[-1] * 2)
    # The last doubling may ask for more than there is.
    return (*sizes[:-1], last) if len(sizes) > 1 else (last,)


def bucket_of(sizes: Sequence[int], size: int) -> int:
    """The smallest that is large enough."""
    return next(bucket for bucket in sizes if bucket >= size)
