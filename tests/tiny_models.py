"""Tiny random models with a tokenizer made on the spot, as transformers would have saved them.

Cheap enough for every test, and of the same families as the real ones.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END_OF_TEXT = "<|endoftext|>"
_SAMPLE = [
    "The quick brown fox jumps over the lazy dog.",
    "Title: Attention is all you need\nAbstract: The dominant models are neural networks.",
    "Größe, naïve café, 你好世界, مرحبا, 😀 emoji and $x^2$ — tokens of several bytes.",
]


def build_tokenizer(num_tokens: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's; any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SAMPLE * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def build_tiny_gpt_neo(path: Path, seed: int = 0, context_length: int = 256) -> Path:
    """GPT-Neo with a local window so small that it matters."""
    tokenizer = build_tokenizer()
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=8,
        max_position_embeddings=context_length,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save(GPTNeoForCausalLM, config, tokenizer, path, seed)


def build_tiny_gpt2(path: Path, seed: int = 0, context_length: int = 256) -> Path:
    """GPT-2."""
    tokenizer = build_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=48,
        n_layer=3,
        n_head=4,
        n_positions=context_length,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save(GPT2LMHeadModel, config, tokenizer, path, seed)


def build_tiny_llama(
    path: Path, seed: int = 0, context_length: int = 256, width: int = 48, num_layers: int = 3
) -> Path:
    """Llama with grouped key-value heads and a tied head, as SmolLM2 has."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save(LlamaForCausalLM, config, tokenizer, path, seed)


def build_patient_llama(
    path: Path, context_length: int = 2048, width: int = 384, num_layers: int = 10, seed: int = 0
) -> Path:
    """A Llama whose texts can be interrupted, and that hardly draws the end.

    About 2 ms a token in float32 and 0.6 in int8; the kernels write 5,000 tokens/s of the tiny one.
    """
    build_tiny_llama(path, seed, context_length, width, num_layers)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][0] = 0.0  # the head is tied: the end's logit is 0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def build_tiny_opt(path: Path, seed: int = 0, context_length: int = 256) -> Path:
    """A family without a runtime of ours."""
    tokenizer = build_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context_length,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return _save(OPTForCausalLM, config, tokenizer, path, seed)


_BUILDERS: dict[str, Callable[[Path, int, int], Path]] = {
    "gpt_neo": build_tiny_gpt_neo,
    "gpt2": build_tiny_gpt2,
    "llama": build_tiny_llama,
    "opt": build_tiny_opt,
}
NATIVE_FAMILIES = ("gpt_neo", "gpt2", "llama")


@functools.cache
def tiny_model(family: str, seed: int = 0, context_length: int = 256) -> Path:
    """A folder with a tiny model, built once a process and removed at its end; do not change it."""
    path = Path(tempfile.mkdtemp(prefix=f"textmill-tiny-{family}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return _BUILDERS[family](path, seed, context_length)


def _save(
    kind: type[PreTrainedModel],
    config: object,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    seed: int,
) -> Path:
    torch.manual_seed(seed)
    model = kind(config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual start, so that logits differ clearly from token to token.
            parameter.add_(torch.randn_like(parameter) * 0.15)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
