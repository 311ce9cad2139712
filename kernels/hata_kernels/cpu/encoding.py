"""Which encoders are compiled, and their weights as the kernel takes them."""

from __future__ import annotations

import numpy as np
import torch

from ..encoders import Encoder
from ..encoders.asymmetric import AsymmetricEncoder
from ..encoders.linear import LinearEncoder
from .step_kernels import ASYMMETRIC, GIVEN, LINEAR

_NO_MATRIX, _NO_ROWS = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32)
_NO_STEPS = np.empty(0, np.float32)


def encoding_of(encoder: Encoder) -> tuple:
    """Say who encodes for this encoder, and with which weights.

    Parameters
    ----------
    encoder : Encoder
        On the CPU.

    Returns
    -------
    tuple
        Arguments of `hata_kernels.cpu.step_kernels.decode_layer`, from ``method``, which is `GIVEN`
        where PyTorch encodes, to ``steps``.
    """
    tensors = encoder.tensors()
    steps = _array(tensors["scale_step"]) if encoder.scale_bits else _NO_STEPS
    if isinstance(encoder, AsymmetricEncoder):
        residual = tensors.get("residual_weight")
        weights = (
            _array(tensors["key_weight"]),
            _array(tensors["key_bias"]),
            _NO_MATRIX if residual is None else _array(residual),
            _array(tensors["query_weight"]),
            _array(tensors["query_bias"]),
            encoder.clip / 2 ** (encoder.query_bits - 1),
        )
        return ASYMMETRIC, *weights, steps
    if isinstance(encoder, LinearEncoder):
        rest = (_NO_ROWS, _NO_MATRIX, _NO_MATRIX, _NO_ROWS, 0.0)
        return LINEAR, _array(tensors["weight"]), *rest, steps
    return GIVEN, _NO_MATRIX, _NO_ROWS, _NO_MATRIX, _NO_MATRIX, _NO_ROWS, 0.0, _NO_STEPS


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()
