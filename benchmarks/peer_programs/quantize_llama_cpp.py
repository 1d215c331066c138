"""Quantize a GGUF file by llama.cpp itself.

``python quantize_llama_cpp.py SOURCE.gguf TARGET.gguf Q4_0``; needs llama-cpp-python.
"""

import ctypes
import json
import sys

import llama_cpp


def main(source: str, target: str, kind: str) -> int:
    """Write the target; the source may be quantized already."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.allow_requantize = True
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings))
    print(json.dumps({"figure": "quantized", "code": code}))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
