"""From a folder to a working model: its info, its reports, and the errors of a load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.kernels import KERNEL_DIR
from tests.tiny_models import tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models import sources
from textmill.engine.models.checkpoint import weight_files
from textmill.engine.models.conversion import write_plain_model
from textmill.engine.models.errors import ModelLoadError, ModelUnusable, SourceNotFound
from textmill.engine.models.loading import LoadedModel, load

IDS = [5, 17, 300, 42, 9]


def loaded(
    source: Path | str, cache: Path, *, dtype: str = "auto", adapter: str | None = None
) -> tuple[LoadedModel, list[str]]:
    said: list[str] = []
    spec = ModelSpec("tiny", str(source), adapter, dtype, True, "")
    return load(spec, cache_dir=cache, dtype=dtype, num_slots=1, report=said.append), said


def copied(family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model(family), tmp_path / "model"))


def change_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document |= changes
    kept = {key: value for key, value in document.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


class OneRow:
    """A minimal batch entry."""

    def __init__(self) -> None:
        self.ids = list(IDS)
        self.num_cached = 0
        self.slot = 0


def logits(model: LoadedModel) -> torch.Tensor:
    row = OneRow()
    model.runner.prefill([(row, len(row.ids) - 1)])
    return torch.as_tensor(model.runner.decode([row])[0])


def reference(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        last: torch.Tensor = model(torch.tensor([IDS])).logits[0, -1]
    return last


def assert_one_sentence(error: pytest.ExceptionInfo[ModelLoadError]) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500, message


@pytest.mark.parametrize(
    ("in_config", "in_generation", "ends"),
    [
        (7, 3, {3}),
        (7, [3, 4], {3, 4}),
        (7, None, {7}),
        ([7, 8], ..., {7, 8}),
        (None, None, set()),
    ],
)
def test_the_end_of_text_is_that_of_the_generation_config_first(
    in_config: object, in_generation: object, ends: set[int], tmp_path: Path
) -> None:
    folder = copied("llama", tmp_path)
    change_json(folder / "config.json", eos_token_id=in_config)
    change_json(folder / "generation_config.json", eos_token_id=in_generation)
    assert loaded(folder, tmp_path)[0].info.eos_token_ids == ends


def test_without_a_generation_config_the_config_says_where_texts_end(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    (folder / "generation_config.json").unlink()
    assert loaded(folder, tmp_path)[0].info.eos_token_ids == {0}


def test_the_same_files_elsewhere_are_the_same_revision(tmp_path: Path) -> None:
    here = loaded(tiny_model("gpt_neo"), tmp_path)[0].info
    there = loaded(copied("gpt_neo", tmp_path), tmp_path)[0].info
    assert here == there


def test_int8_is_float32_for_now_and_says_so(tmp_path: Path) -> None:
    model, said = loaded(tiny_model("llama"), tmp_path, dtype="int8")
    assert model.info.dtype == "float32"
    assert [sentence for sentence in said if "int8" in sentence]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_kept_small_are_computed_with_in_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = copied("llama", tmp_path)
    path = folder / "model.safetensors"
    small = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(small, path, metadata={"format": "pt"})
    model, _ = loaded(folder, tmp_path)
    assert model.info.dtype == "float32"
    torch.testing.assert_close(logits(model), reference(folder), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mappings")
@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_packed_weights_leave_nothing_of_their_file_in_memory(family: str, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    spec = ModelSpec("tiny", str(folder), None, "int8", True, "")
    model = load(
        spec,
        cache_dir=tmp_path,
        dtype="int8",
        num_slots=1,
        report=lambda _: None,
        kernel_dir=KERNEL_DIR,
    )
    assert model.info.dtype == "int8"
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_weights_in_several_files_are_one_model(tmp_path: Path) -> None:
    folder = copied("gpt2", tmp_path)
    wanted = reference(folder)
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    weight_map: dict[str, str] = {}
    for file, own in parts.items():
        save_file({name: whole[name] for name in own}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert [file.name for file in weight_files(folder)] == list(parts)
    model, said = loaded(folder, tmp_path / "cache")
    assert said == []
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelUnusable, match="incomplete") as error:
        loaded(folder, tmp_path / "cache")
    assert_one_sentence(error)
    for nonsense in ("{", "{}", "[]", '{"weight_map": null}'):
        index.write_text(nonsense)
        with pytest.raises(ModelUnusable, match=r"index\.json cannot be read"):
            loaded(folder, tmp_path / "cache")


def test_a_folder_without_any_tokenizer_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelUnusable) as error:
        loaded(folder, tmp_path / "cache")
    assert str(folder) in str(error.value)
    assert_one_sentence(error)
    assert list((tmp_path / "cache").iterdir()) == []


# peft asks transformers by a name that transformers has given up.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_of_another_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2"))
    adapter = tmp_path / "adapter"
    config = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    get_peft_model(base, config).save_pretrained(str(adapter))
    with pytest.raises(ModelLoadError) as error:
        loaded(tiny_model("llama"), tmp_path / "cache", adapter=str(adapter))
    assert_one_sentence(error)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("document", ["[]", "null", "3", '"text"'])
def test_a_config_that_is_no_object_is_refused_in_a_sentence(document: str, tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    (folder / "config.json").write_text(document)
    with pytest.raises(ModelUnusable, match=r"config\.json") as error:
        loaded(folder, tmp_path / "cache")
    assert_one_sentence(error)


def test_weights_of_another_size_than_the_config_says_are_refused(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    change_json(folder / "config.json", num_hidden_layers=4)
    with pytest.raises(ModelUnusable, match="incomplete") as error:
        loaded(folder, tmp_path / "cache")
    assert_one_sentence(error)


def test_a_model_that_transformers_does_not_know_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    change_json(folder / "config.json", model_type="no_such_family", architectures=...)
    with pytest.raises(ModelUnusable) as error:
        loaded(folder, tmp_path / "cache")
    assert_one_sentence(error)


def test_no_file_of_ours_is_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("asked the Hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    for source in (tmp_path / "missing", tmp_path / "missing.gguf", "missing.gguf"):
        with pytest.raises(SourceNotFound, match="missing"):
            loaded(source, tmp_path)


def test_of_two_workers_that_convert_at_once_the_second_takes_what_the_first_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("gpt2", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    cache = tmp_path / "cache"
    save = write_plain_model
    made: list[sources.PreparedModel] = []

    def overtaken(*arguments: Any) -> None:
        """Another worker begins and ends while this one converts."""
        monkeypatch.setattr(sources, "write_plain_model", save)
        made.append(sources.prepare(str(folder), None, cache, lambda _: None))
        save(*arguments)

    monkeypatch.setattr(sources, "write_plain_model", overtaken)
    made.append(sources.prepare(str(folder), None, cache, lambda _: None))
    assert made[0] == made[1]
    left = [path for path in cache.iterdir() if path.is_dir()]
    assert left == [made[0].folder]  # nothing half done is left
    assert loaded(folder, cache)[0].info.revision == made[0].revision
