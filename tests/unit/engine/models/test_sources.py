"""Finding models and converting them once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models import sources
from textmill.engine.models.errors import ModelLoadError, ModelUnusable, SourceNotFound
from textmill.engine.models.loading import LoadedModel, load
from textmill.engine.models.sources import locate, prepare

ROOT = Path(__file__).parents[4]
IDS = [5, 17, 300, 42, 9, 9, 120]


class OneRow:
    """A minimal batch entry."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = list(ids)
        self.num_cached = 0
        self.slot = 0


def loaded(source: Path | str, cache: Path, adapter: Path | None = None) -> LoadedModel:
    chosen = str(adapter) if adapter else None
    spec = ModelSpec("m", str(source), chosen, "auto", True, "")
    return load(spec, cache_dir=cache, dtype="auto", num_slots=1, report=lambda _: None)


def logits(model: LoadedModel) -> torch.Tensor:
    row = OneRow(IDS)
    model.runner.prefill([(row, len(row.ids) - 1)])
    return torch.as_tensor(model.runner.decode([row])[0])


def reference(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        last: torch.Tensor = model.eval()(torch.tensor([IDS])).logits[0, -1]
    return last


def copied(family: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model(family), tmp_path / "model"))


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_a_folder_of_safetensors_is_served_in_place(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family)
    said: list[str] = []
    prepared = prepare(str(folder), None, tmp_path / "cache", said.append)
    assert (prepared.folder, said) == (folder, [])
    assert not (tmp_path / "cache").exists()
    info = loaded(folder, tmp_path).info
    assert (info.family, info.path, info.dtype) == (family, "native", "float32")
    assert info.eos_token_ids == {0}
    assert info.vocabulary_size == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert info.context_length == 256
    assert info.num_parameters == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert info.revision == prepared.revision


def test_another_family_goes_through_transformers_and_says_so(tmp_path: Path) -> None:
    model = loaded(tiny_model("opt"), tmp_path)
    assert (model.info.family, model.info.path) == ("generic:opt", "generic")
    wanted = reference(AutoModelForCausalLM.from_pretrained(tiny_model("opt")))
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)


def test_a_revision_changes_with_what_makes_the_text_and_with_nothing_else(tmp_path: Path) -> None:
    folder = copied("gpt2", tmp_path)

    def revision() -> str:
        return prepare(str(folder), None, tmp_path, lambda _: None).revision

    first = revision()
    (folder / "README.md").write_text("hello")
    assert revision() == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-4}))
    second = revision()
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors")
    assert len({first, second, revision()}) == 3


def test_bin_weights_are_converted_once(tmp_path: Path) -> None:
    folder = copied("gpt2", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    said: list[str] = []
    first = prepare(str(folder), None, tmp_path / "cache", said.append)
    assert len(said) == 1
    assert "once" in said[0]
    second = prepare(str(folder), None, tmp_path / "cache", said.append)
    assert (second, len(said)) == (first, 1)
    wanted = reference(AutoModelForCausalLM.from_pretrained(tiny_model("gpt2")))
    model = loaded(folder, tmp_path / "cache")
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)


class Evil:
    """Pickles to a call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"open({str(self._path)!r}, 'w').close()",))


def test_bin_weights_that_carry_code_are_refused_and_run_nothing(tmp_path: Path) -> None:
    folder = copied("gpt2", tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Evil(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelUnusable):
        prepare(str(folder), None, tmp_path / "cache", lambda _: None)
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "cache").iterdir()) == []  # and nothing half done is left


# PEFT 0.21 asks transformers 5.23 for a property by its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("family", "target"), [("llama", "q_proj"), ("gpt2", "c_attn")])
def test_an_adapter_is_merged(family: str, target: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    plain = reference(base).clone()
    torch.manual_seed(1)
    tuned = get_peft_model(
        base,
        LoraConfig(
            r=4,
            target_modules=[target],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
            fan_in_fan_out=family == "gpt2",
        ),
    )
    tuned.save_pretrained(str(tmp_path / "adapter"))
    wanted = reference(tuned)
    assert not torch.allclose(wanted, plain, atol=1e-3)
    model = loaded(tiny_model(family), tmp_path / "cache", tmp_path / "adapter")
    assert model.info.path == "native"
    torch.testing.assert_close(logits(model), wanted, atol=1e-3, rtol=1e-3)
    assert model.info.revision != loaded(tiny_model(family), tmp_path).info.revision


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> tuple[Path, LlamaForCausalLM]:
    """A llama in GGUF, with a byte-level vocabulary of single bytes."""
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "th", "the"]
    return written_gguf(tmp_path / "tiny.gguf", "default", vocabulary, ["t h", "th e"])


def written_gguf(
    path: Path,
    pre: str,
    vocabulary: list[str],
    merges: list[str],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> tuple[Path, LlamaForCausalLM]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] + [1] * (len(vocabulary) - 1))
    writer.add_token_merges(merges or ["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in gguf_tensors(model):
        own = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(tensor, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable names for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    named = {byte: chr(byte) for byte in plain}
    return named | {byte: chr(256 + place) for place, byte in enumerate(others)}


def gguf_tensors(model: LlamaForCausalLM) -> list[tuple[str, np.ndarray]]:
    """In llama.cpp's names and its order of rotary halves."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = [
        ("token_embd.weight", state["model.embed_tokens.weight"]),
        ("output_norm.weight", state["model.norm.weight"]),
    ]
    for index in range(model.config.num_hidden_layers):
        for theirs, ours in names.items():
            weight = state[f"model.layers.{index}.{theirs}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(ours)
            if heads:
                halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
                weight = halves.swapaxes(1, 2).reshape(weight.shape)
            found.append((f"blk.{index}.{ours}.weight", np.ascontiguousarray(weight)))
    return found


def test_a_gguf_file_is_converted_once(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path, original = tiny_gguf
    said: list[str] = []
    first = prepare(str(path), None, tmp_path / "cache", said.append)
    assert len(said) == 1
    assert "tiny.gguf" in said[0]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in first.folder.iterdir()
    }
    # The numbers are plain now; with the mark transformers would neither train nor save them.
    assert "quantization_config" not in json.loads((first.folder / "config.json").read_text())
    assert prepare(str(path), None, tmp_path / "cache", said.append) == first
    assert len(said) == 1
    model = loaded(path, tmp_path / "cache")
    assert model.info.family == "llama"
    assert model.tokenizer.decode(model.tokenizer.encode("the end")) == "the end"
    ids, row = [5, 17, 200, 42], OneRow([5, 17, 200, 42])
    model.runner.prefill([(row, len(row.ids) - 1)])
    with torch.inference_mode():
        wanted = original.eval()(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(model.runner.decode([row])[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_gguf_file_is_converted_once_for_all_its_adapters(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path, original = tiny_gguf
    tuned = get_peft_model(
        original,
        LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    for name in ("one", "two"):
        tuned.save_pretrained(str(tmp_path / name))
    said: list[str] = []
    adapted = [
        prepare(str(path), str(tmp_path / name), tmp_path / "cache", said.append)
        for name in ("one", "two")
    ]
    assert sum("tiny.gguf" in sentence for sentence in said) == 1
    assert len(said) == 3
    assert adapted[0].folder != adapted[1].folder
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 3


def test_a_conversion_of_an_earlier_version_is_not_served(
    tiny_gguf: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = tiny_gguf
    monkeypatch.setattr(sources, "_CONVERSION", sources._CONVERSION - 1)
    before = prepare(str(path), None, tmp_path / "cache", print)
    monkeypatch.undo()
    said: list[str] = []
    after = prepare(str(path), None, tmp_path / "cache", said.append)
    assert after.folder != before.folder
    assert len(said) == 1


def test_a_pre_tokenizer_is_kept_and_changes_the_revision(tmp_path: Path) -> None:
    vocabulary = ["<|endoftext|>", *bytes_to_unicode().values(), "12", "ĊĊ"]
    prepared = {}
    for name in ("gpt-2", "smollm"):
        path = written_gguf(tmp_path / f"{name}.gguf", name, vocabulary, ["1 2", "Ċ Ċ"])[0]
        prepared[name] = prepare(str(path), None, tmp_path / "cache", print)
    cut = {
        name: Tokenizer.from_file(str(found.folder / "tokenizer.json")).encode("\n\n12").tokens
        for name, found in prepared.items()
    }
    assert cut == {"gpt-2": ["Ċ", "Ċ", "12"], "smollm": ["ĊĊ", "1", "2"]}
    assert prepared["gpt-2"].revision != prepared["smollm"].revision
    # What a fine-tuning reads from the folder is the same.
    again = AutoTokenizer.from_pretrained(prepared["smollm"].folder)
    assert again.tokenize("\n\n12") == cut["smollm"]
    assert (again.bos_token, again.eos_token) == ("<|endoftext|>", "<|endoftext|>")


def test_an_unknown_pre_tokenizer_is_refused_by_its_name_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    path, _ = written_gguf(tmp_path / "m.gguf", "of-tomorrow", ["<|endoftext|>", "a"], [])
    with pytest.raises(ModelUnusable, match="of-tomorrow"):
        prepare(str(path), None, tmp_path / "cache", print)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_second_start_imports_no_transformers(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.loading import load
load(ModelSpec("m", sys.argv[1], None, "auto", True, ""), cache_dir=Path(sys.argv[2]),
     dtype="auto", num_slots=1, report=print)
assert "transformers" not in sys.modules
assert "peft" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_model("llama")), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_a_package_is_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_model_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for name in ("a_model_package", "a-model-package"):
        assert locate(f"package:{name}", print) == package / "weights.gguf"
    assert "a_model_package" not in sys.modules


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("package:no_such_package_here", "not installed"),
        ("package:json", "no .gguf"),
        ("package:../etc", "not installed"),
        ("/nowhere/model.gguf", "/nowhere/model.gguf"),
        ("/nowhere/folder", "/nowhere/folder"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(source: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound) as caught:
        prepare(source, None, tmp_path, lambda _: None)
    assert says in str(caught.value)


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelUnusable, match=r"no config\.json"):
        prepare(str(empty), None, tmp_path, lambda _: None)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelUnusable, match=r"broken\.gguf"):
        prepare(str(broken), None, tmp_path / "cache", lambda _: None)
    with pytest.raises(SourceNotFound, match=r"adapter_config\.json"):
        prepare(str(tiny_model("llama")), str(empty), tmp_path, lambda _: None)


@pytest.mark.parametrize("damage", ["weights", "tensor", "tokenizer", "panic", "config"])
def test_a_damaged_folder_is_told_from_a_sound_one(damage: str, tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"cut off")
    elif damage == "tensor":
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors")
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif damage == "panic":  # the library panics on it, which is no Exception
        document = json.loads((folder / "tokenizer.json").read_text())
        document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
        (folder / "tokenizer.json").write_text(json.dumps(document))
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(ModelLoadError):
        loaded(folder, tmp_path / "cache")


def test_a_tokenizer_that_crashes_the_library_stops_no_conversion_but_its_own(
    tmp_path: Path,
) -> None:
    folder = copied("gpt2", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(ModelUnusable, match="tokenizer cannot be loaded"):
        prepare(str(folder), None, tmp_path / "cache", print)


def test_a_hub_id_without_network_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(SourceNotFound, match="network"):
        prepare("somebody/some-model", None, tmp_path, lambda _: None)


def test_a_hub_id_is_fetched_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(repository: str, **options: object) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(tiny_model("llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    said: list[str] = []
    prepared = prepare("somebody/some-model", None, tmp_path, said.append)
    assert prepared.folder == tiny_model("llama")
    assert "somebody/some-model" in said[0]
    assert "*.safetensors" in asked[0][1]  # type: ignore[index]


def test_weights_that_transformers_would_fill_at_random_are_refused(tmp_path: Path) -> None:
    """For a generic family and for conversions: transformers only warns of missing tensors."""
    for family, name in (("opt", "fc1.weight"), ("gpt2", "c_proj.weight")):
        folder = Path(shutil.copytree(tiny_model(family), tmp_path / family))
        weights = load_file(folder / "model.safetensors")
        gone = next(key for key in weights if key.endswith(name))
        del weights[gone]
        if family == "opt":
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            (folder / "model.safetensors").unlink()
            torch.save(weights, folder / "pytorch_model.bin")
        with pytest.raises(ModelUnusable, match="incomplete") as error:
            loaded(folder, tmp_path / "cache")
        assert gone.removeprefix("model.").removeprefix("transformer.") in str(error.value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("damage", ["missing", "narrow", "no number"])
def test_an_adapter_that_does_not_fit_is_refused(damage: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    config = LoraConfig(
        r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapter = tmp_path / "adapter"
    get_peft_model(base, config).save_pretrained(str(adapter))
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    if damage == "missing":
        del weights[name]
    elif damage == "narrow":
        weights[name] = weights[name][:, :-1].contiguous()
    else:
        weights[name][0, 0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnusable):
        loaded(tiny_model("llama"), tmp_path / "cache", adapter)
    assert list((tmp_path / "cache").iterdir()) == []
