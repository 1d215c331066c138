"""Copies a converted model for other engines and transformers: plain weights of one type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def plain_copy(origin: Path, target: Path, dtype: str) -> Path:
    """Copy a folder in save_pretrained layout, in another type.

    The note about a quantized source is omitted: vLLM refuses it, and with it transformers would
    compute with another type.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in origin.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy(path, target)
    config = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    text = json.dumps(config | {"dtype": dtype, "torch_dtype": dtype})
    (target / "config.json").write_text(text, encoding="utf-8")
    tensors = load_file(origin / "model.safetensors")
    kind = getattr(torch, dtype)
    plain = {name: tensor.to(kind).contiguous() for name, tensor in tensors.items()}
    save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
    return target
