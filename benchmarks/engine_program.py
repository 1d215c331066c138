"""Measure the engine in a separate process, and print one JSON line for each figure.

``python -m benchmarks.engine_program SOURCE --cache FOLDER [--dtype auto] [--batches 1,16] …``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from textmill.core.torch_environment import prepare_for_serving

PREFILL_TOKENS = 1000
BATCHES = (1, 4, 16, 32, 64)


def main(arguments: list[str]) -> int:
    """Run the requested measurements."""
    started = time.perf_counter()
    prepare_for_serving()  # before PyTorch is imported, as in the worker
    options = _parser().parse_args(arguments)

    from benchmarks.engine_runs import NUM_SLOTS, Bench  # noqa: PLC0415 - after the environment is set

    bench = Bench(
        options.source,
        options.cache,
        options.dtype,
        started,
        num_slots=max(NUM_SLOTS, *options.batches, *options.traces, 0),
        natural_ends=options.natural_ends,
        isa=options.isa,
    )
    _print("loaded", **bench.facts())
    for batch in options.batches:
        _print("decode", batch=batch, **bench.decode(batch, options.tokens))
    if options.prefill:
        _print("prefill", tokens_per_second=bench.prefill(PREFILL_TOKENS))
    if options.long:
        _print("long", tokens_per_second=bench.long_decode())
    if options.beside_long:
        _print("beside_long", **bench.beside_long())
    for batch in options.traces:
        _print("traces", batch=batch, share=bench.traced(batch, options.tokens))
    bench.close()
    return 0


def _print(figure: str, **values: object) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def _batches(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_program")
    parser.add_argument("source", help="as in the models file")
    parser.add_argument("--cache", type=Path, required=True, help="folder of converted models")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each sequence")
    parser.add_argument("--batches", type=_batches, default=list(BATCHES))
    parser.add_argument(
        "--traces", type=_batches, default=[], help="batch sizes to measure with traces"
    )
    parser.add_argument("--isa", default="auto", help="instruction set of the kernels")
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--long", action="store_true", help="sequences with a long context")
    parser.add_argument("--beside-long", action="store_true", help="short prompts beside long ones")
    parser.add_argument("--natural-ends", action="store_true", help="end tokens end a sequence")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
