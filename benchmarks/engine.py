"""The engine alone: tokens per second at several batch sizes, compared with other engines."""

from __future__ import annotations

import functools
import importlib.util
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine_program import BATCHES
from benchmarks.figures import Section, ratio_of_medians
from benchmarks.peers import Peer, in_turn, json_lines, with_all_precisions
from benchmarks.plain_copy import plain_copy
from benchmarks.processes import (
    DEFAULT_MODEL_PACKAGE,
    ROOT,
    BenchmarkError,
    Workspace,
    has_default_model,
)

ROUNDS = 2
DEFAULT_SOURCE = f"package:{DEFAULT_MODEL_PACKAGE}"
LLAMA, NEO = "SmolLM2-135M", "GPT-Neo-125M's shape"
# Operations for one decoded token: two for each weight outside the embeddings, and of the head.
GFLOP = {LLAMA: 2 * 134.5e6 / 1e9, NEO: 2 * 123.5e6 / 1e9}
_GOALS = {"vllm": ((16, 32, 64), 2.0), "llama.cpp": ((1,), 1.25)}
Samples = dict[tuple[str, int], list[float]]


def measure(
    space: Workspace, peers: Sequence[Peer] = (), dtype: str = "auto", isa: str = "auto"
) -> Section:
    """Time the engine with both families, in turn with the peers.

    Raises:
        BenchmarkError: there is no default model.
    """
    if not has_default_model():
        raise BenchmarkError("The package with the default model is not installed.")
    section = Section(
        "engine",
        "tokens per second of all sequences together, from the first submission to the last result",
        [
            f"128 new tokens each, sampling at 0.7, none ends early; {ROUNDS} rounds in turn",
            "each round loads the model in a new process, and warms up before the measurement",
        ],
    )
    rates: Samples = defaultdict(list)
    lines: dict[str, list[dict[str, object]]] = defaultdict(list)
    neo = _neo_folder(space)
    peers = with_all_precisions(peers)
    calls = [
        functools.partial(_ours, space, LLAMA, DEFAULT_SOURCE, (dtype, isa), rates, lines),
        functools.partial(_ours, space, NEO, str(neo), (dtype, isa), rates, lines),
        *(functools.partial(_theirs, space, peer, rates, lines) for peer in peers),
    ]
    in_turn(calls, ROUNDS)
    _report(section, rates, lines, peers)
    return section


def _ours(
    space: Workspace,
    name: str,
    source: str,
    dtype_and_isa: tuple[str, str],
    rates: Samples,
    lines: dict[str, list[dict[str, object]]],
) -> None:
    command = [sys.executable, "-m", "benchmarks.engine_program", source]
    dtype, isa = dtype_and_isa
    command += ["--cache", str(space.models), "--dtype", dtype, "--isa", isa, "--traces", "16,64"]
    command += ["--prefill", "--long", "--beside-long"]
    for line in json_lines(command, name):
        lines[name].append(dict(line))
        if line["figure"] == "decode":
            rates[name, int(line["batch"])].append(line["tokens_per_second"])


def _theirs(
    space: Workspace, peer: Peer, rates: Samples, lines: dict[str, list[dict[str, object]]]
) -> None:
    gguf = peer.quantized(_gguf(), space.folder)
    for line in peer.run(folder=_peer_folder(space), gguf=gguf, batches=BATCHES):
        lines[peer.name].append(dict(line))
        if "batch" in line:
            rates[peer.name, int(line["batch"])].append(line["tokens_per_second"])


def _report(
    section: Section,
    rates: Samples,
    lines: dict[str, list[dict[str, object]]],
    peers: Sequence[Peer],
) -> None:
    first = lines[LLAMA][0]
    precision = f"{first['dtype']} ({first['instruction_set'] or 'PyTorch'})"
    for name in (LLAMA, NEO):
        for batch in BATCHES:
            section.add(f"{name}, {precision}, {batch}", "tokens/s", rates[name, batch])
    for batch in BATCHES:
        neo, llama = statistics.median(rates[NEO, batch]), statistics.median(rates[LLAMA, batch])
        ratio = neo * GFLOP[NEO] / (llama * GFLOP[LLAMA])
        section.add(f"GPT-Neo / Llama, tokens/s by FLOP, {batch}", "x", [ratio], "within 15 %")
    for name in (LLAMA, NEO):
        section.add(f"{name}, prefill of 1,000", "tokens/s", _all(lines[name], "prefill"))
        section.add(f"{name}, 16 of 1,500 tokens", "tokens/s", _all(lines[name], "long"))
    kept = ratio_of_medians(_all(lines[LLAMA], "long"), rates[LLAMA, 16])
    section.add(f"{LLAMA}, 16 of 1,500 tokens / 16 short ones", "x", [kept], "≥ 0.6 x")
    _report_beside_long(section, lines[LLAMA])
    starts = [
        float(str(line["first_token_seconds"]))
        for line in lines[LLAMA]
        if "first_token_seconds" in line
    ]
    section.add("process start to first token, first round", "s", starts[:1])
    section.add("the same, caches warm", "s", starts[1:], "≤ 10 s")
    _report_shares(section, lines[LLAMA])
    for peer in peers:
        _report_peer(section, peer, rates, lines)
    if peers:
        _report_best(section, rates, lines, peers)


def _report_beside_long(section: Section, lines: list[dict[str, object]]) -> None:
    """From submission to the first token, within the engine."""
    found = [line for line in lines if line["figure"] == "beside_long"]
    for place, label in (("idle", "an idle engine"), ("beside", "beside four of 4,402 tokens")):
        seconds = [line[place] for line in found]
        values = [value * 1000 for own in seconds if isinstance(own, list) for value in own]
        section.add(f"first token of 20 tokens of prompt, {label}", "ms", values)
    lasts = [float(str(line["long"])) for line in found]
    section.add("first token of the last of those four", "s", lasts)


def _report_shares(section: Section, lines: list[dict[str, object]]) -> None:
    for batch in (1, 64):
        found = [
            line["shares"] for line in lines if line.get("batch") == batch and "shares" in line
        ]
        shares = [share for share in found if isinstance(share, dict)]
        for part in shares[0]:
            values = [share[part] * 100 for share in shares]
            section.add(f"{LLAMA}, {batch}: time in {part}", "%", values)
    for batch in (16, 64):
        kept = [
            float(str(line["share"])) * 100
            for line in lines
            if line["figure"] == "traces" and line["batch"] == batch
        ]
        section.add(f"{LLAMA}, {batch}: throughput kept with traces", "%", kept, "≥ 95 %")


def _report_peer(
    section: Section, peer: Peer, rates: Samples, lines: dict[str, list[dict[str, object]]]
) -> None:
    batches, bound = _GOALS.get(peer.program, ((), 0.0))
    for batch in BATCHES:
        section.add(f"{peer.name}, {peer.precision}, {batch}", "tokens/s", rates[peer.name, batch])
    for label, figure in (("prefill of 1,000", "prefill"), ("16 of 1,500 tokens", "long")):
        if found := _all(lines[peer.name], figure):
            section.add(f"{peer.name}, {label}", "tokens/s", found)
    for batch in BATCHES:
        goal = f"≥ {bound:g} x" if batch in batches else ""
        ratio = ratio_of_medians(rates[LLAMA, batch], rates[peer.name, batch])
        section.add(f"ours / {peer.name}, {batch}", "x", [ratio], goal)
    loads = [
        float(str(line["load_seconds"])) for line in lines[peer.name] if "load_seconds" in line
    ]
    section.add(f"{peer.name}, load", "s", loads)


def _report_best(
    section: Section,
    rates: Samples,
    lines: dict[str, list[dict[str, object]]],
    peers: Sequence[Peer],
) -> None:
    """Beside the fastest peer of each row."""
    rows = {
        f"{batch}": (rates[LLAMA, batch], [rates[p.name, batch] for p in peers])
        for batch in BATCHES
    }
    for label, figure in (("prefill of 1,000", "prefill"), ("16 of 1,500 tokens", "long")):
        theirs = [_all(lines[peer.name], figure) for peer in peers]
        rows[label] = (_all(lines[LLAMA], figure), [samples for samples in theirs if samples])
    for label, (ours, theirs) in rows.items():
        if theirs:
            best = max(theirs, key=statistics.median)
            section.add(f"ours / the best peer, {label}", "x", [ratio_of_medians(ours, best)])


def _all(lines: list[dict[str, object]], figure: str) -> list[float]:
    return [float(str(line["tokens_per_second"])) for line in lines if line.get("figure") == figure]


def _default_folder(space: Workspace) -> Path:
    """The converted default model, in save_pretrained layout."""
    return next(path.parent for path in sorted(space.models.glob("*/config.json")))


def _peer_folder(space: Workspace) -> Path:
    """A copy of the default model in bfloat16, for other engines."""
    folder = space.folder / "bfloat16"
    return folder if folder.exists() else plain_copy(_default_folder(space), folder, "bfloat16")


def _gguf() -> Path:
    spec = importlib.util.find_spec(DEFAULT_MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise BenchmarkError("The package with the default model is not installed.")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _neo_folder(space: Workspace) -> Path:
    """A random model of GPT-Neo-125M's shape, with the default model's tokenizer."""
    convert = [sys.executable, "-m", "benchmarks.engine_program", DEFAULT_SOURCE]
    json_lines([*convert, "--cache", str(space.models), "--batches", ""], "the conversion")
    folder = space.new_folder("gpt-neo")
    tokenizer = _default_folder(space) / "tokenizer.json"
    command = [sys.executable, "-m", "benchmarks.neo_model", str(folder), str(tokenizer)]
    try:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(
            f"The random model could not be created: {error.stderr[-300:]!r}"
        ) from error
    return folder
