"""The logits of a model are the same bits with every instruction set that this processor has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.kernels import KERNEL_DIR
from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from tests.unit.engine.models.test_decoder import random_ids
from textmill.engine.kernels.build import kernels
from textmill.engine.kernels.instruction_sets import available_sets
from textmill.engine.models.families import describe, load_weights
from textmill.engine.models.native_runtime import NativeDecoder
from textmill.engine.models.weights import Float32

SETS = [item.name for item in available_sets()]


def logits(folder: Path, instruction_set: str, *, is_int8: bool) -> Float32:
    """After each token of a prompt that is longer than a window of GPT-Neo."""
    spec = describe(json.loads((folder / "config.json").read_text()))
    assert spec is not None
    weights = load_weights(spec, load_file(folder / "model.safetensors"))
    library = kernels(KERNEL_DIR, instruction_set).library
    decoder = NativeDecoder(spec, weights, 2, library=library, is_int8=is_int8, num_threads=2)
    ids, places = random_ids(150, 3), range(150)
    return np.array(decoder.forward(ids, places, [1] * 150, places))


@pytest.mark.skipif(len(SETS) == 1, reason="this processor has one set")
@pytest.mark.parametrize("is_int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_all_instruction_sets_compute_the_same_logits(family: str, is_int8: bool) -> None:
    wanted = logits(tiny_model(family), SETS[0], is_int8=is_int8)
    assert np.isfinite(wanted).all()
    for name in SETS[1:]:
        found = logits(tiny_model(family), name, is_int8=is_int8)
        assert np.array_equal(found.view(np.int32), wanted.view(np.int32)), name
