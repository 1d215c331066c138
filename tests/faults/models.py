"""The small models of the harness, built once in each process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from tests.faults.reaper import REAPER

USUAL_SEED, OTHER_SEED = 0, 7
WIDTH, NUM_LAYERS = 192, 10  # about 1 ms a token


@functools.cache
def model_of(seed: int) -> Path:
    """The folder of the model with this seed; all models have the same shape. Do not modify it."""
    from tests.tiny_models import build_patient_llama

    folder = Path(tempfile.mkdtemp(prefix="textmill-faults-model-"))
    REAPER.watch(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build_patient_llama(folder / "model", width=WIDTH, num_layers=NUM_LAYERS, seed=seed)
