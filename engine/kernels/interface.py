"""The shared structs and the functions of the kernels: the one list on Python's side.

``interface.h`` declares the same in C++. ``declare`` compares the two, so that a struct or a
function that differs is an error when the library is loaded, not a wrong number later.
"""

from __future__ import annotations

import ctypes
import struct

from textmill.engine.sampling.token_records import NUM_ALTERNATIVES

VERSION = 5


class Spec(ctypes.Structure):
    """The sizes of a decoder."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "inner", "vocabulary",
            "context", "num_slots", "capacity", "is_rms", "activation", "is_int8",
            "is_cache_int8", "num_threads", "max_tokens",
        )),
        ("norm_eps", ctypes.c_float),
        ("score_scale", ctypes.c_float),
    ]  # fmt: skip


# strategy, top_k, num_seen, is_traced, seen, temperature, repetition_penalty, min_p, uniform, mass,
# custom
SAMPLING_PARAMETERS = struct.Struct("<iiiiQfff4xddQ")
# bias_ids, biases, breaker_ids, dry_multiplier, dry_base, typical_p, xtc_threshold,
# frequency_penalty, presence_penalty, top_n_sigma, num_biases, num_breakers, num_generated,
# dry_allowed_length, dry_range, excludes_top
CUSTOM_PARAMETERS = struct.Struct("<QQQddddfffiiiiii4x")
# rank, logprob, probability, entropy; ids, logprobs, probabilities of the alternatives
TRACE = struct.Struct(f"<ifff{NUM_ALTERNATIVES}i{NUM_ALTERNATIVES}f{NUM_ALTERNATIVES}f")

_SIZES = {
    "Spec": ctypes.sizeof(Spec),
    "SamplingParameters": SAMPLING_PARAMETERS.size,
    "CustomParameters": CUSTOM_PARAMETERS.size,
    "Trace": TRACE.size,
}
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64}
# The types of each function's arguments: a pointer, an int, an int64 count. All but
# ``textmill_free`` return an int.
_FUNCTIONS = {
    "textmill_new": "pp",  # spec, decoder
    "textmill_free": "p",  # decoder, as everywhere below
    "textmill_set_linear": "piipllpl",  # layer, part, weight and its shape, bias and its length
    "textmill_set_outputs": "piilpll",  # layer, part, first, weight of some outputs and its shape
    "textmill_set_norm": "piiplpl",  # layer, index, weight and its length, bias and its length
    "textmill_set_cache": "pippli",  # layer, keys, values, count, window
    "textmill_set_rotary": "pppll",  # cos, sin, their shape
    "textmill_forward": "pipppipp",  # count, hidden, positions, slots, count, wanted, logits
    "textmill_sample": "pipppp",  # count, logits, parameters, tokens, traces
    "textmill_log_softmax": "pipp",  # count, logits, result
    "textmill_seconds": "pp",  # seconds
}


class InterfaceMismatch(Exception):
    """A library was built for another version of this module."""


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Check that the library has this interface, and declare its functions' types.

    Raises:
        AttributeError: the library lacks a function.
        InterfaceMismatch: a version, the size of a struct or the types of a function differ.
    """
    library.textmill_interface.restype = ctypes.c_char_p
    _compare((library.textmill_interface() or b"").decode().splitlines())
    for name, types in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [_TYPES[code] for code in types], ctypes.c_int
    library.textmill_free.restype = None
    return library


def _compare(found: list[str]) -> None:
    sizes = {"version": VERSION, **_SIZES}
    expected = [f"{name} {number}" for name, number in sizes.items()]
    expected += [f"{name}({types})" for name, types in _FUNCTIONS.items()]
    missing = [line for line in expected if line not in found]
    unknown = [line for line in found if line not in expected]
    if missing or unknown:
        raise InterfaceMismatch(
            f"the library declares {', '.join(unknown) or 'nothing else'} where this version of"
            f" Textmill expects {', '.join(missing) or 'nothing else'}"
        )
