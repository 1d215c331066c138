"""Weights in memory are this process's own: later changes of their files have no effect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.kernels import KERNEL_DIR
from tests.tiny_models import tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models import loading
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.loading import LoadedModel, load
from textmill.engine.models.sources import prepare

IDS = [5, 17, 300, 42, 9]
RUNTIMES = {
    "kernels-float32": (KERNEL_DIR, "float32"),
    "kernels-int8": (KERNEL_DIR, "int8"),
    "torch-float32": (None, "float32"),
    "torch-bfloat16": (None, "bfloat16"),
}
CASES = [
    *((family, runtime) for family in ("gpt_neo", "gpt2", "llama") for runtime in RUNTIMES),
    ("opt", "torch-float32"),
    ("opt", "torch-bfloat16"),
]


def loaded(folder: Path, runtime: str = "torch-float32") -> LoadedModel:
    kernel_dir, dtype = RUNTIMES[runtime]
    spec = ModelSpec("tiny", str(folder), None, dtype, True, "")
    return load(
        spec,
        cache_dir=folder.parent / "cache",
        dtype=dtype,
        num_slots=1,
        report=lambda _: None,
        kernel_dir=kernel_dir,
    )


class OneRow:
    """A batch entry in the first slot."""

    slot = 0

    def __init__(self) -> None:
        self.ids = list(IDS)
        self.num_cached = 0


def step(model: LoadedModel, row: OneRow) -> None:
    if row.num_cached == 0:
        model.runner.prefill([(row, len(row.ids) - 1)])
    row.ids.append(int(model.runner.decode([row])[0].argmax()))


def in_its_own_type(folder: Path, dtype: torch.dtype) -> None:
    """Else the weights would be converted, and the copy be no merit of the loader's."""
    weights = {n: t.to(dtype) for n, t in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("family", "runtime"), CASES)
def test_weights_that_are_overwritten_or_cut_off_in_place_change_no_text_and_crash_nothing(
    family: str, runtime: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model(family), tmp_path / "model"))
    in_its_own_type(folder, torch.bfloat16 if "bfloat16" in runtime else torch.float32)
    undisturbed = OneRow()
    model = loaded(folder, runtime)
    for _ in range(12):
        step(model, undisturbed)
    weights = folder / "model.safetensors"
    sound = weights.read_bytes()

    model = loaded(folder, runtime)
    row = OneRow()
    for _ in range(4):
        step(model, row)
    with weights.open("r+b") as file:  # the same file, as `cp` and rsync --inplace write it
        file.seek(len(sound) // 2)
        file.write(os.urandom(len(sound) - len(sound) // 2))
    for _ in range(4):
        step(model, row)
    os.truncate(weights, 0)
    for _ in range(4):
        step(model, row)
    assert row.ids == undisturbed.ids
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")

    with pytest.raises(ModelUnusable):
        loaded(folder, runtime)
    weights.write_bytes(sound)
    assert loaded(folder, runtime).info.revision == model.info.revision


def test_other_weights_in_place_are_another_revision_at_the_next_load(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    first = loaded(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert loaded(folder).info.revision != first.info.revision


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_folder_that_changes_while_it_is_read_is_refused_and_not_served_under_a_wrong_revision(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model(family), tmp_path / "model"))

    def prepare_and_change(*arguments: object) -> object:
        found = prepare(*arguments)  # type: ignore[arg-type]
        in_its_own_type(folder, torch.float64)
        return found

    monkeypatch.setattr(loading, "prepare", prepare_and_change)
    with pytest.raises(ModelUnusable, match="changed while they were read"):
        loaded(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_loading_holds_one_tensor_at_a_time_beside_the_packed_weights(tmp_path: Path) -> None:
    """The files are read, not mapped: the peak stays near the memory that the model needs."""
    from tests.tiny_models import build_tiny_llama

    folder = build_tiny_llama(tmp_path / "model", width=768, num_layers=24)
    size = (folder / "model.safetensors").stat().st_size
    code = f"""
import resource
from pathlib import Path
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.loading import load
def load_it(source):
    return load(ModelSpec("m", source, None, "int8", True, ""), cache_dir=Path({str(tmp_path)!r}),
                dtype="int8", num_slots=1, report=print, kernel_dir=Path({str(KERNEL_DIR)!r}))
small = load_it({str(tiny_model("llama"))!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_it({str(folder)!r})
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < size  # int8 alone is a quarter of the float32 file
