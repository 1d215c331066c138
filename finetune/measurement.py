"""The measurement of a run: base and tuned model, loaded as a worker loads them, in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.loading import load
from textmill.finetune.evaluation import evaluate
from textmill.finetune.metrics import Metrics
from textmill.finetune.run import LOCK_FILE, FinetuningRun, exclusive

EVALUATION_SLOTS = 16
_MERGED = "measured"


def measure(run: FinetuningRun, weights: Path) -> dict[str, Metrics]:
    """Measure the base and the tuned model on the same held-out examples with Textmill's engine.

    Args:
        run: the run.
        weights: the folder of an adapter, or of all weights.

    Raises:
        FinetuneError: a model cannot be measured.
    """
    is_adapter = (weights / "adapter_config.json").is_file()
    tuned = (
        ModelSpec("after", run.base.source, str(weights), "float32", True, "")
        if is_adapter
        else ModelSpec("after", str(weights), None, "float32", True, "")
    )
    base = ModelSpec("before", str(run.base.folder), None, "float32", True, "")
    # For merged weights, which are temporary. Not in /tmp, which may be in memory.
    cache = run.folder / _MERGED
    shutil.rmtree(cache, ignore_errors=True)  # left by a process that was killed
    try:
        return {spec.name: _measure(run, spec, cache) for spec in (base, tuned)}
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def measure_finished(run: FinetuningRun, weights: Path) -> dict[str, Metrics]:
    """Measure a finished folder like :func:`measure`, and leave no files in the state folder.

    Raises:
        FinetuneError: a model cannot be measured, or another process executes the same run.
    """
    with exclusive(run.folder):
        try:
            return measure(run, weights)
        finally:
            if [path.name for path in run.folder.iterdir()] == [LOCK_FILE]:
                shutil.rmtree(run.folder)


def _measure(run: FinetuningRun, spec: ModelSpec, cache_dir: Path) -> Metrics:
    run.report(f"Measuring the model {spec.name} training on held-out text.")
    model = load(
        spec,
        cache_dir=cache_dir,
        dtype="float32",
        num_slots=EVALUATION_SLOTS,
        kernel_dir=run.settings.kernel_dir,
        instruction_set=run.settings.kernels_isa,
        report=run.report,
    )
    max_tokens = run.config.data.max_tokens
    return evaluate(
        model,
        run.data.validation,
        (example.text for example in run.data.train),
        run.config.evaluation,
        encode=run.base.encoder(max_tokens).encode_parts,
        max_tokens=max_tokens,
        seed=run.config.seed,
        num_slots=EVALUATION_SLOTS,
    )
