"""Time llama.cpp through its C interface: one token of each sequence in a step, no sampling.

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


def tokens_per_second(model: Any, batch_size: int) -> float:
    """Decode NUM_TIMED positions of ``batch_size`` sequences, and read all their logits."""
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = 256 * batch_size
    settings.n_seq_max = batch_size
    settings.n_batch = 2048
    settings.n_threads = settings.n_threads_batch = NUM_THREADS
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(2048, 0, batch_size)
    started = 0.0
    for position in range(NUM_WARM + NUM_TIMED):
        if position == NUM_WARM:
            started = time.perf_counter()
        batch.n_tokens = batch_size
        for sequence in range(batch_size):
            batch.token[sequence] = 50 + (position + 11 * sequence) % 3000
            batch.pos[sequence] = position
            batch.n_seq_id[sequence] = 1
            batch.seq_id[sequence][0] = sequence
            batch.logits[sequence] = ctypes.c_int8(1)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode this batch")
        for sequence in range(batch_size):
            llama_cpp.llama_get_logits_ith(context, sequence)
    seconds = time.perf_counter() - started
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return batch_size * NUM_TIMED / seconds


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


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2].split(",")])
