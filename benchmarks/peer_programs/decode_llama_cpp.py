"""Time llama.cpp through its C interface: one token of each sequence in a step, no sampling.

Also a prompt of 1,000 tokens, and 16 sequences with 1,500 tokens each.

``python decode_llama_cpp.py MODEL.gguf BATCHES``; needs llama-cpp-python.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp

NUM_WARM = 16  # positions before the clock starts
NUM_TIMED = 112
NUM_THREADS = 2
PREFILL_TOKENS, CHUNK_TOKENS = 1000, 512
LONG_BATCH, LONG_CONTEXT, LONG_STEPS = 16, 1500, 32


class Context:
    """llama.cpp's state for some sequences."""

    def __init__(self, model: Any, num_sequences: int, num_tokens: int) -> None:
        """Create it for ``num_tokens`` tokens of each sequence."""
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = num_tokens * num_sequences
        settings.n_seq_max = num_sequences
        settings.n_batch = 2048
        settings.n_threads = settings.n_threads_batch = NUM_THREADS
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._batch = llama_cpp.llama_batch_init(2048, 0, num_sequences)

    def decode(self, tokens: list[tuple[int, int]], wanted: set[int]) -> None:
        """Compute (sequence, position) pairs, and read the logits after the wanted ones."""
        self._batch.n_tokens = len(tokens)
        for index, (sequence, position) in enumerate(tokens):
            self._batch.token[index] = 50 + (position + 11 * sequence) % 3000
            self._batch.pos[index] = position
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = sequence
            self._batch.logits[index] = ctypes.c_int8(index in wanted)
        if llama_cpp.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama.cpp could not decode this batch")
        for index in wanted:
            llama_cpp.llama_get_logits_ith(self._context, index)

    def prefill(self, sequence: int, num_tokens: int) -> None:
        """Compute a prompt, and read the logits after its last token."""
        for start in range(0, num_tokens, CHUNK_TOKENS):
            end = min(start + CHUNK_TOKENS, num_tokens)
            wanted = {end - start - 1} if end == num_tokens else set()
            self.decode([(sequence, position) for position in range(start, end)], wanted)

    def steps(self, num_sequences: int, positions: range) -> float:
        """Seconds for one token of each sequence at each position."""
        started = time.perf_counter()
        for position in positions:
            tokens = [(sequence, position) for sequence in range(num_sequences)]
            self.decode(tokens, set(range(num_sequences)))
        return time.perf_counter() - started

    def close(self) -> None:
        """Free its memory."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


def tokens_per_second(model: Any, batch_size: int) -> float:
    """Decode NUM_TIMED positions of ``batch_size`` sequences, and read all their logits."""
    context = Context(model, batch_size, 256)
    context.steps(batch_size, range(NUM_WARM))
    seconds = context.steps(batch_size, range(NUM_WARM, NUM_WARM + NUM_TIMED))
    context.close()
    return batch_size * NUM_TIMED / seconds


def prefill_rate(model: Any) -> float:
    """Prompt tokens per second; the second of two prompts is timed."""
    context = Context(model, 2, 2048)
    context.prefill(0, PREFILL_TOKENS)
    started = time.perf_counter()
    context.prefill(1, PREFILL_TOKENS)
    seconds = time.perf_counter() - started
    context.close()
    return PREFILL_TOKENS / seconds


def long_rate(model: Any) -> float:
    """Tokens per second of LONG_BATCH sequences with LONG_CONTEXT tokens each."""
    context = Context(model, LONG_BATCH, LONG_CONTEXT + 100)
    for sequence in range(LONG_BATCH):
        context.prefill(sequence, LONG_CONTEXT)
    seconds = context.steps(LONG_BATCH, range(LONG_CONTEXT, LONG_CONTEXT + LONG_STEPS))
    context.close()
    return LONG_BATCH * LONG_STEPS / seconds


def main(path: str, batches: list[int]) -> None:
    """Load the file once, and time each batch size."""
    started = time.perf_counter()
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for batch_size in batches:
        rate = tokens_per_second(model, batch_size)
        print(json.dumps({"batch": batch_size, "tokens_per_second": rate}), flush=True)
    for figure, measure in (("prefill", prefill_rate), ("long", long_rate)):
        print(json.dumps({"figure": figure, "tokens_per_second": measure(model)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2].split(",")])
