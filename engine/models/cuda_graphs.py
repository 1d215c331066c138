"""The decoder's step on a GPU: steps of static shapes, recorded as CUDA graphs and replayed.

Launching a small model's kernels one by one takes longer than running them; a recorded step is
launched as one. A graph is bound to addresses and shapes, so there is one for each bucket of
positions. It is recorded when it is first needed; graphs for short sequences are recorded before
the worker is ready. On a device without graphs the same static step runs directly, which is how it
is tested. It also runs directly if recording fails: slower, with the same results.

Row i of a step is slot i of the cache, and all slots are computed in every step. Libraries choose
their kernels, and so the order of their sums, by the number of rows, and a sequence must be the
same whatever is decoded beside it. A small model's step takes about as long for one row as for all
of them, since the weights are read once either way. Slots without a sequence write to a position
behind the context, which is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch import Tensor

from textmill.engine.models.attention import Step
from textmill.engine.models.batch_entry import BatchEntry
from textmill.engine.models.cache import KV_BLOCK_TOKENS
from textmill.engine.models.decoder import Decoder
from textmill.engine.models.errors import in_one_line
from textmill.engine.models.torch_runner import TorchRunner

NUM_WARM_CALLS = 2  # before recording, so that libraries have chosen their kernels
READY_KV_TOKENS = 256  # graphs of up to so many positions are recorded before the worker is ready
# Takes a function that computes a step in fixed memory; returns one that does the same faster.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StaticStep:
    """A step of one shape.

    Attributes:
        places: (3, slots) int64 on the device: tokens, positions, and positions of new keys.
        logits: (slots, vocabulary) float32, written by ``play``.
        play: computes the step.
    """

    places: Tensor
    logits: Tensor
    play: Callable[[], None]


class CudaRecorder:
    """Records calls as CUDA graphs, which share their memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Record one call.

        Raises:
            RuntimeError: the call cannot be recorded, or not computed at all.
        """
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_CALLS):
                compute()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                compute()
        finally:  # after a failure, torch.cuda.graph leaves its own stream selected
            torch.cuda.set_stream(current)
        self._pool = graph.pool()
        return graph.replay


def run_directly(compute: Callable[[], None]) -> Callable[[], None]:
    """The recorder of devices without graphs: records nothing."""
    return compute


class GraphRunner(TorchRunner):
    """Runs the decoder in recorded steps."""

    def __init__(
        self,
        decoder: Decoder,
        num_slots: int,
        *,
        prefix_bytes: int,
        record: Recorder | None = None,
    ) -> None:
        """Create a runner.

        Args:
            decoder: computes a step.
            num_slots: the number of slots of the decoder's cache.
            prefix_bytes: the size of the prefix cache.
            record: records a step; by default as the decoder's device can.
        """
        super().__init__(decoder, prefix_bytes=prefix_bytes)
        self._num_slots = num_slots
        self._kv_buckets = buckets(KV_BLOCK_TOKENS, decoder.spec.context_length)
        self._steps: dict[int, StaticStep] = {}
        is_cuda = decoder.device.type == "cuda"
        self._record = record or (CudaRecorder() if is_cuda else run_directly)

    @property
    def num_steps(self) -> int:
        """The number of shapes recorded so far."""
        return len(self._steps)

    def warm_up(self) -> None:
        """Record the shapes that short sequences need."""
        for kv_len in self._kv_buckets:
            if kv_len <= READY_KV_TOKENS:
                self._step(kv_len)

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

    def _step(self, kv_len: int) -> StaticStep:
        found = self._steps.get(kv_len)
        if found is None:
            found = self._steps[kv_len] = self._recorded(kv_len)
        return found

    @torch.inference_mode()
    def _recorded(self, kv_len: int) -> StaticStep:
        decoder = self._decoder
        device = decoder.device
        places = torch.zeros(3, self._num_slots, dtype=torch.int64, device=device)
        places[2] = decoder.cache.capacity - 1
        logits = torch.zeros(self._num_slots, decoder.spec.vocabulary_size, device=device)

        def compute() -> None:
            logits.copy_(self._compute(places, kv_len))

        return StaticStep(places, logits, self._recorded_or_plain(compute, kv_len))

    def _recorded_or_plain(self, compute: Callable[[], None], kv_len: int) -> Callable[[], None]:
        """The recorded call; the call itself, for this and all later shapes, if that fails."""
        try:
            return self._record(compute)
        except RuntimeError as error:  # as PyTorch raises for every error of the device
            self._record = run_directly
            log.warning(
                "step_not_recorded",
                positions=kv_len,
                reason=in_one_line(error),
                consequence="steps that are not recorded yet run directly, which is slower",
            )
            return compute

    def _compute(self, places: Tensor, kv_len: int) -> Tensor:
        """Compute one token for every slot; all data stays on the device."""
        decoder = self._decoder
        tokens, positions, writes = places
        num_rows = len(tokens)
        slots = torch.arange(num_rows, device=places.device)
        step = Step(
            num_rows,
            1,
            kv_len,
            decoder.write_places(writes[:, None], slots),
            slice(0, num_rows),
            None,
            decoder.visible(positions[:, None], kv_len),
            *decoder.rotations(positions),
        )
        return decoder.logits(decoder.run(tokens, positions, step))[:num_rows]


def buckets(first: int, last: int) -> tuple[int, ...]:
    """Sizes to round up to: doubled from ``first`` until one is at least ``last``."""
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(sizes[-1] * 2)
    # The last doubling may exceed the largest size that exists.
    return (*sizes[:-1], last) if len(sizes) > 1 else (last,)


def bucket_of(sizes: Sequence[int], size: int) -> int:
    """The smallest bucket that is large enough."""
    return next(bucket for bucket in sizes if bucket >= size)
