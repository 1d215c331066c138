"""Makes a random model of GPT-Neo-125M's shape.

``python -m benchmarks.neo_model FOLDER TOKENIZER``

The tokenizer is another model's tokenizer.json, so that prompts have the same tokens in both.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from transformers import GPTNeoConfig, GPTNeoForCausalLM, set_seed


def make(folder: Path, tokenizer: Path) -> None:
    """Write config, safetensors and tokenizer.json into ``folder``."""
    set_seed(0)
    config = GPTNeoConfig(
        vocab_size=50257,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        attention_types=[[["global", "local"], 6]],
        window_size=256,
        max_position_embeddings=2048,
        bos_token_id=50256,
        eos_token_id=50256,
    )
    GPTNeoForCausalLM(config).save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.json")


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
