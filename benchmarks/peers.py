"""Other engines for comparison: their programs, interpreters and model files."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, BenchmarkError

RUN_SECONDS = 1200.0
LLAMA_CPP = "llama.cpp"
# llama.cpp repacks Q4_0 and Q8_0 for its fastest products; the packaged file is Q4_1.
QUANTIZATIONS = ("Q4_0", "Q8_0", "Q4_1")
# Name → program, whether it reads the model's folder (otherwise its GGUF file), precision.
_PROGRAMS = {
    "vllm": ("decode_vllm.py", True, "bfloat16"),
    LLAMA_CPP: ("decode_llama_cpp.py", False, "Q4_1"),
    "transformers": ("decode_transformers.py", True, "bfloat16"),
}


@dataclass(frozen=True, slots=True)
class Peer:
    """An engine, and an interpreter in which it is installed."""

    program: str
    python: Path
    quantization: str = ""

    @property
    def name(self) -> str:
        """The engine, and the quantization if there are several."""
        return f"{self.program} {self.quantization}".rstrip()

    @property
    def precision(self) -> str:
        """The number type in which it computes."""
        return self.quantization or _PROGRAMS[self.program][2]

    def quantized(self, gguf: Path, folder: Path) -> Path:
        """The model's file in this peer's quantization, made by llama.cpp itself.

        Raises:
            BenchmarkError: it failed.
        """
        if self.quantization in ("", _PROGRAMS[LLAMA_CPP][2]):
            return gguf
        made = folder / f"{self.quantization}.gguf"
        if not made.exists():
            path = ROOT / "benchmarks" / "peer_programs" / "quantize_llama_cpp.py"
            command = [str(self.python), str(path), str(gguf), str(made), self.quantization]
            json_lines(command, f"{self.name}'s quantizer")
        return made

    def run(self, *, folder: Path, gguf: Path, batches: Sequence[int]) -> list[dict[str, float]]:
        """Time the engine once, and return the JSON lines that it printed.

        Raises:
            BenchmarkError: it failed; the message has the end of its error output.
        """
        program, reads_folder, _ = _PROGRAMS[self.program]
        model = folder if reads_folder else gguf
        path = ROOT / "benchmarks" / "peer_programs" / program
        sizes = ",".join(str(size) for size in batches)
        return json_lines([str(self.python), str(path), str(model), sizes], self.name)


def json_lines(command: list[str], name: str) -> list[dict[str, Any]]:
    """Run a program, and return the JSON lines that it printed.

    Raises:
        BenchmarkError: it failed, or ran too long.
    """
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=RUN_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"{name} did not run: {error}") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{name} failed: {done.stderr[-600:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def with_all_precisions(peers: Sequence[Peer]) -> list[Peer]:
    """The same peers, with llama.cpp once for each quantization."""
    found: list[Peer] = []
    for peer in peers:
        if peer.program == LLAMA_CPP:
            found += [replace(peer, quantization=kind) for kind in QUANTIZATIONS]
        else:
            found.append(peer)
    return found


def parse_peer(text: str) -> Peer:
    """Parse ``NAME=INTERPRETER`` of the command line.

    Raises:
        argparse.ArgumentTypeError: the engine or the file does not exist.
    """
    name, _, python = text.partition("=")
    if name not in _PROGRAMS:
        raise argparse.ArgumentTypeError(f"no peer is named {name!r}: {', '.join(_PROGRAMS)}")
    if not Path(python).is_file():
        raise argparse.ArgumentTypeError(f"{name}: there is no interpreter {python!r}")
    return Peer(name, Path(python).absolute())


def in_turn(calls: Sequence[Callable[[], None]], rounds: int) -> None:
    """Call A B A B …, so that other load on the machine affects all of them alike."""
    for _ in range(rounds):
        for call in calls:
            call()
