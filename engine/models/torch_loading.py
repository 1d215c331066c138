"""Makes the runner of a natively supported family in PyTorch, on a CPU or a GPU."""

from __future__ import annotations

import torch

from textmill.engine.models.cuda_graphs import GraphRunner
from textmill.engine.models.decoder import Decoder, in_torch
from textmill.engine.models.errors import ModelUnusable
from textmill.engine.models.placement import Placement
from textmill.engine.models.torch_runner import TorchRunner
from textmill.engine.models.weights import DecoderSpec, DecoderWeights, Rows


def torch_runner(
    spec: DecoderSpec,
    weights: DecoderWeights[Rows],
    placement: Placement,
    slots: int,
    prefix_bytes: int,
) -> tuple[TorchRunner, int]:
    """The runner for a placement, and the number of the model's parameters.

    Raises:
        ModelUnusable: the GPU has too little memory.
    """
    dtype = torch.bfloat16 if placement.dtype == "bfloat16" else torch.float32
    try:
        decoder = Decoder(spec, in_torch(weights, dtype, torch.device(placement.device)), slots)
        if placement.device == "cpu":
            return TorchRunner(decoder, prefix_bytes=prefix_bytes), decoder.num_parameters
        runner = GraphRunner(decoder, slots, prefix_bytes=prefix_bytes)
        runner.warm_up()
    except torch.OutOfMemoryError as error:
        raise ModelUnusable(
            f"The GPU has too little memory for the model and the key-value cache of {slots}"
            " sequences. Lower TEXTMILL_SLOTS."
        ) from error
    return runner, decoder.num_parameters
