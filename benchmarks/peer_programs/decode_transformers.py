"""Time transformers' ``generate`` on one static batch, in bfloat16, sampling.

Uses a GPU if there is one.

``python decode_transformers.py MODEL_FOLDER BATCHES``; needs transformers.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "Related work. Neural machine translation has been studied"
NUM_NEW = 64


def main(folder: str, batches: list[int]) -> None:
    """Load the model once, and time each batch size after a short warm-up."""
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().to(device)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 0}
    for batch_size in batches:
        inputs = tokenizer([PROMPT] * batch_size, return_tensors="pt").to(device)
        model.generate(**inputs, **sampling, min_new_tokens=4, max_new_tokens=4)
        started = time.perf_counter()
        model.generate(**inputs, **sampling, min_new_tokens=NUM_NEW, max_new_tokens=NUM_NEW)
        rate = batch_size * NUM_NEW / (time.perf_counter() - started)
        print(json.dumps({"batch": batch_size, "tokens_per_second": rate}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2].split(",")])
