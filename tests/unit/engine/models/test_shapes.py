"""Mis-shaped, mistyped and missing tensors, and configs that cannot be: refused by their names."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.kernels import KERNEL_DIR
from tests.tiny_models import NATIVE_FAMILIES, build_tokenizer, tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.checkpoint import Checkpoint
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.families import bare_name
from textmill.engine.models.loading import LoadedModel, load

Weights = dict[str, torch.Tensor]


def loaded(folder: Path, kernel_dir: Path | None = KERNEL_DIR) -> LoadedModel:
    spec = ModelSpec("tiny", str(folder), None, "float32", True, "")
    return load(
        spec,
        cache_dir=folder.parent / "cache",
        dtype="float32",
        num_slots=1,
        report=lambda _: None,
        kernel_dir=kernel_dir,
    )


def refusal(folder: Path) -> str:
    with pytest.raises(ModelUnusable) as error:
        loaded(folder)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600, message
    return message


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model(request.param), tmp_path / "model"))


def change_weights(folder: Path, change: Callable[[Weights], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    kept = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(kept, path, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(document), encoding="utf-8")


def of_one_layer(family: str) -> list[str]:
    """The names in the file of everything outside the layers, and of one layer."""
    names = load_file(tiny_model(family) / "model.safetensors")
    last = ("h.1.", "layers.1.")
    bare = {name: bare_name(name) for name in names}
    return [n for n, b in bare.items() if not b.startswith(("h.", "layers.")) or b.startswith(last)]


TENSORS = [(family, name) for family in NATIVE_FAMILIES for name in of_one_layer(family)]
DAMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a row short": lambda t: t[:-1],
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "no row": lambda t: t[:0],
    "narrow": lambda t: t[..., :-1],
    "one dimension more": lambda t: t[None],
    "integers": lambda t: t.to(torch.int32),
    "booleans": lambda t: t > 0,
    "bytes": lambda t: t.to(torch.uint8),
}


@pytest.mark.parametrize(("folder", "name"), TENSORS, indirect=["folder"])
def test_every_tensor_that_is_missing_or_of_another_shape_or_type_is_named(
    folder: Path, name: str
) -> None:
    sound = load_file(folder / "model.safetensors")
    for damage, change in DAMAGES.items():
        change_weights(folder, lambda w, c=change: w.update({name: c(sound[name])}))  # type: ignore[misc]
        message = refusal(folder)
        assert name in message, damage
        if damage not in ("integers", "booleans", "bytes"):
            assert str(list(sound[name].shape)) in message
            assert str(list(change(sound[name]).shape)) in message
    change_weights(folder, lambda w: w.pop(name))
    assert f"{bare_name(name)} of shape" in refusal(folder)


@pytest.mark.parametrize("folder", NATIVE_FAMILIES, indirect=True)
@pytest.mark.parametrize("kernel_dir", [None, KERNEL_DIR], ids=["torch", "kernels"])
def test_float64_and_mixed_halves_are_computed_with_in_float32(
    folder: Path, kernel_dir: Path | None
) -> None:
    change_weights(
        folder,
        lambda w: w.update(
            {
                n: t.to(torch.float64 if i % 2 else torch.bfloat16)
                for i, (n, t) in enumerate(w.items())
            }
        ),
    )
    model = loaded(folder, kernel_dir)
    assert model.info.dtype == "float32"
    assert bool(np.isfinite(np.asarray(model.runner.score([5, 17, 300]))).all())


@pytest.mark.parametrize("vocab_size", [4_000_000, 448, 401, 399, 1])
@pytest.mark.parametrize("folder", NATIVE_FAMILIES, indirect=True)
def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(
    folder: Path, vocab_size: int
) -> None:
    change_config(folder, vocab_size=vocab_size)
    message = refusal(folder)
    assert "[400, 48]" in message
    assert f"[{vocab_size}, 48]" in message


WRONG_CONFIGS = [
    *((family, field, value) for family, fields in {
        "gpt_neo": ("hidden_size", "num_layers", "num_heads", "max_position_embeddings",
                    "vocab_size", "window_size", "intermediate_size"),
        "gpt2": ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "n_inner"),
        "llama": ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                  "max_position_embeddings", "vocab_size", "intermediate_size", "head_dim"),
    }.items() for field in fields for value in (0, -1, 2.5, "48", [4], True, 1 << 40,
                                                float("nan"), float("inf"))),
    *((family, field, value) for family, field in (
        ("gpt_neo", "layer_norm_epsilon"), ("gpt2", "layer_norm_epsilon"),
        ("llama", "rms_norm_eps"), ("llama", "rope_theta"),
    ) for value in (float("nan"), float("inf"), -1.0, 0.0, "small", True, 10**400)),
    ("gpt_neo", "num_heads", 5),
    ("gpt2", "n_head", 5),
    ("llama", "num_attention_heads", 5),
    ("llama", "num_key_value_heads", 4),
    ("llama", "head_dim", 7),
    ("gpt_neo", "attention_layers", ["global"]),
    ("gpt_neo", "attention_layers", ["sideways"] * 4),
    ("gpt_neo", "attention_layers", "global"),
    ("gpt_neo", "attention_types", [[["global", "local"], 10**9]]),
    ("gpt_neo", "attention_types", [["global", 4]]),
    ("gpt_neo", "attention_types", 7),
    ("llama", "rope_scaling", [1]),
    ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 0.0, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
     "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
]  # fmt: skip
_INSIDE = {"rope_scaling": ("rope_scaling", "factor", "freq")}


@pytest.mark.parametrize(
    ("folder", "field", "value"), WRONG_CONFIGS, indirect=["folder"], ids=lambda v: str(v)[:30]
)
def test_a_config_that_cannot_be_is_refused_by_its_field(
    folder: Path, field: str, value: object
) -> None:
    kept = {"rope_parameters": None} if field in ("rope_theta", "rope_scaling") else {}
    if field == "attention_types":
        kept = {"attention_layers": None}
    change_config(folder, **(kept | {field: value}))
    message = refusal(folder)
    assert any(words in message for words in _INSIDE.get(field, (field,))), message


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_a_head_of_its_own_must_be_there_where_the_config_says_so(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    assert "lm_head.weight of shape [400, 48] is missing" in refusal(folder)
    change_weights(folder, lambda w: w.update({"lm_head.weight": torch.zeros(399, 48)}))
    assert "lm_head.weight has the shape [399, 48]" in refusal(folder)
    change_weights(folder, lambda w: w.update({"lm_head.weight": torch.zeros(400, 48)}))
    assert loaded(folder).runner.score([1, 2]).shape == (2, 400)


@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_biases_of_products_that_are_computed_as_one_are_all_there_or_none(folder: Path) -> None:
    name = "model.layers.1.self_attn.{}_proj.bias"
    change_weights(folder, lambda w: w.update({name.format("q"): torch.zeros(48)}))
    assert "self_attn.k_proj.bias is missing" in refusal(folder)
    change_config(folder, attention_bias=True)
    assert "bias of shape" in refusal(folder)


@pytest.mark.parametrize("folder", NATIVE_FAMILIES, indirect=True)
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)
    message = refusal(folder)
    assert "token id 400 ('<one more>')" in message
    assert "ids 0 to 399" in message


@pytest.mark.parametrize("eos", ["</s>", [0, "x"], {"a": 1}, 1.5, True])
@pytest.mark.parametrize("folder", ["llama"], indirect=True)
def test_ends_of_text_that_are_no_token_ids_are_refused(folder: Path, eos: object) -> None:
    change_config(folder, eos_token_id=eos)
    (folder / "generation_config.json").unlink()
    assert "eos_token_id" in refusal(folder)


# ---- the files themselves -------------------------------------------------------------------


def written(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ({"a": 7}, "wrong at 'a'"),
        (entry(data_offsets=[0]), "wrong at 'a'"),
        (entry(shape=[-2]), "wrong at 'a'"),
        (entry(shape=[2.0]), "wrong at 'a'"),
        (entry(shape="ab"), "wrong at 'a'"),
        (entry(data_offsets=[-8, 0]), "wrong at 'a'"),
        (entry(shape=[3]), "8 bytes, which do not match"),
        (entry(shape=[1 << 62, 4]), "do not match"),
        (entry(data_offsets=[8, 0]), "do not match"),
        (entry(data_offsets=[8, 16]), "it ends before"),
        (entry(dtype="Q4"), "'Q4'"),
        (entry(dtype=["F32"]), "unknown type"),
    ],
    ids=str,
)
def test_a_table_of_contents_that_is_invalid_is_refused(
    tmp_path: Path, header: object, words: str
) -> None:
    path = written(tmp_path / "m.safetensors", header, bytes(8))
    with pytest.raises(ModelUnusable, match="incomplete") as error:
        Checkpoint([path])
    assert words in str(error.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 60), bytes(8)])
def test_a_file_without_a_table_of_contents_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelUnusable, match="table of contents"):
        Checkpoint([tmp_path / "m.safetensors"])


def test_what_is_read_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "wide": torch.randn(2, 3, 4, dtype=torch.float64),
        "whole": torch.arange(5),
        "flags": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    read = Checkpoint([tmp_path / "m.safetensors"])
    assert set(read) == set(tensors)
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        wanted = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert torch.equal(torch.from_numpy(read[name]), wanted)


def test_a_file_that_was_cut_off_after_the_table_was_read_is_an_error_and_no_signal(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.randn(100_000)}, path)
    read = Checkpoint([path])
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(ModelUnusable, match="it ends before"):
        read["a"]
