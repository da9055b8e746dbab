# SPDX-License-Identifier: Apache-2.0
"""Operations composed of simpler ones, where torch's own derivatives of them are wrong or missing.

- `torch._weight_norm`: its second derivative leaves out how the norm depends on the weight.
- `layer_norm`: its third derivative (of a loss made of derivatives of the network) takes mean and
  variance for constants; its second has no forward mode (`normalisation`).
- `group_norm`: its forward mode loses the digits of a tiny direction, and its backward pass reads
  uninitialised memory where the slopes that come in are known to be zero.
- `batch_norm` by the statistics of the batch, `instance_norm`: as `layer_norm`.
- `lstm`: oneDNN's fused cells have no forward mode, and hand on tensors that Python never sees.
  Without them it takes more operations, which can be recorded.
- `embedding_bag`, `segment_reduce`, `cdist`, `pdist`, `ctc_loss`, `hardsigmoid`, and the margin
  losses of several classes: no second derivative.
- `embedding`: with `padding_idx` or `scale_grad_by_freq` its backward pass is no derivative.
- `binary_cross_entropy`: its second derivative is wrong where the probabilities are near 0 or 1.
- `sinc`: its derivatives lose their digits near zero.
- `logcumsumexp`: its second derivative is wrong where the slope that comes in is zero.
- `matrix_exp`: its derivatives lose digits where the slopes that come in are large.
- products with sparse matrices, cross products, small determinants: where a sparse Hessian is found
  in a trace (`composing`).
- `max_unpool`, `as_strided_scatter`, and writes by indices: wrong where places overlap.

Results have the strides of torch's own: a later `view` may need them.

Seen with torch 2.13; issues 175754 and 186256 of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hesse.ad.binary_cross_entropy import binary_cross_entropy
from hesse.ad.ctc_loss import ctc_loss
from hesse.ad.distances import cdist, pdist
from hesse.ad.embedding import embedding, native_embedding
from hesse.ad.logcumsumexp import logcumsumexp
from hesse.ad.matrix_exp import matrix_exp
from hesse.ad.normalisation import normalised
from hesse.ad.overwriting import OVERWRITING
from hesse.ad.piecewise_linear import (
    as_strided_scatter,
    hardsigmoid,
    max_unpool,
    multi_margin_loss,
    multilabel_margin_loss,
)
from hesse.ad.segments import embedding_bag, native_embedding_bag, segment_reduce
from hesse.ad.sinc import sinc
from hesse.ad.small_matrices import SMALL_MATRICES
from hesse.ad.sparse_products import SPARSE_PRODUCTS
from hesse.surroundings import WhileAnyone


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weight g v / |v|."""
    v = v.contiguous()
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """(z - mean) / sqrt(variance + eps) * weight + bias, in float32 at least."""
    rows = input.flatten(input.ndim - len(normalized_shape)).contiguous()
    return _affine(normalised(rows, eps).view(input.shape), weight, bias)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """As `_layer_norm`, over groups of neighbouring channels."""
    if num_groups < 1 or input.ndim < 2 or input.shape[1] % num_groups or not input.numel():
        return torch.group_norm(input, num_groups, weight, bias, eps)
    groups = input.reshape(input.shape[0], num_groups, -1)
    z = normalised(groups, eps).reshape(input.shape)
    return _per_channel(z, weight, bias, input)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `_layer_norm`, over all entries of a channel."""
    of_torch, of_batch = torch.nn.functional.batch_norm, (running_mean, running_var)
    if not training or input.ndim < 2 or input.numel() <= input.shape[1]:
        return of_torch(input, *of_batch, weight, bias, training, momentum, eps)
    if of_batch != (None, None):  # which torch writes to
        of_torch(input.detach(), *of_batch, None, None, training, momentum, eps)
    channels = input.transpose(0, 1)
    z = normalised(channels.flatten(1).contiguous(), eps).view(channels.shape).transpose(0, 1)
    return _per_channel(z, weight, bias, input)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """A group norm with one channel in a group."""
    of_torch, of_batch = torch.nn.functional.instance_norm, (running_mean, running_var)
    if not use_input_stats or input.shape[2:].numel() < 2:
        return of_torch(input, *of_batch, weight, bias, use_input_stats, momentum, eps)
    if of_batch != (None, None):
        of_torch(input.detach(), *of_batch, None, None, use_input_stats, momentum, eps)
    return _group_norm(input, input.shape[1], weight, bias, eps).contiguous()


def _native(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of `torch.nn.functional` as that of `torch`, with another order of arguments."""

    def native(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        by_batch: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        return norm(input, running_mean, running_var, weight, bias, by_batch, momentum, eps)

    return native


def _per_channel(z: Tensor, weight: Tensor | None, bias: Tensor | None, like: Tensor) -> Tensor:
    """With a weight and a bias for each channel, and the strides of torch's own result."""
    shape = (-1, *[1] * (like.ndim - 2))
    z = _affine(
        z,
        None if weight is None else weight.reshape(shape),
        None if bias is None else bias.reshape(shape),
    )
    return z.contiguous(memory_format=_memory_format(like))


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    dtype, z = z.dtype, z if weight is None else z * weight
    return (z if bias is None else z + bias).to(dtype)  # the weight may have another one


def _memory_format(input: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.ndim)
    if last is None or input.is_contiguous() or not input.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


@WhileAnyone
@contextmanager
def without_onednn() -> Iterator[None]:
    """Within it, torch computes the cells of an LSTM itself."""
    backend = torch.backends.mkldnn
    # Flags may be frozen: the import of torch's own tests freezes them.
    with torch.backends.__allow_nonbracketed_mutation():
        before, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        with torch.backends.__allow_nonbracketed_mutation():
            backend.enabled = before


def _lstm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with without_onednn():
        return torch._VF.lstm(*args)


DECOMPOSITIONS = {
    **OVERWRITING,
    **SPARSE_PRODUCTS,
    **SMALL_MATRICES,
    torch._VF.lstm: _lstm,
    torch._weight_norm: _weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    torch.layer_norm: _layer_norm,
    torch.nn.functional.layer_norm: _layer_norm,
    torch.group_norm: _group_norm,
    torch.nn.functional.group_norm: _group_norm,
    torch.batch_norm: _native(_batch_norm),
    torch.instance_norm: _native(_instance_norm),
    torch.nn.functional.batch_norm: _batch_norm,
    torch.nn.functional.instance_norm: _instance_norm,
    torch.embedding: native_embedding,
    torch.nn.functional.embedding: embedding,
    torch.embedding_bag: native_embedding_bag,
    torch.nn.functional.embedding_bag: embedding_bag,
    torch.segment_reduce: segment_reduce,
    torch.cdist: cdist,
    torch.pdist: pdist,
    torch.nn.functional.pdist: pdist,
    torch.sinc: sinc,
    torch.Tensor.sinc: sinc,
    torch.special.sinc: sinc,
    torch.logcumsumexp: logcumsumexp,
    torch.Tensor.logcumsumexp: logcumsumexp,
    torch.matrix_exp: matrix_exp,
    torch.Tensor.matrix_exp: matrix_exp,
    torch.linalg.matrix_exp: matrix_exp,
    torch.nn.functional.binary_cross_entropy: binary_cross_entropy,
    torch.ctc_loss: ctc_loss,
    torch.nn.functional.ctc_loss: ctc_loss,
    torch.as_strided_scatter: as_strided_scatter,
    torch.nn.functional.hardsigmoid: hardsigmoid,
    torch.nn.functional.multi_margin_loss: multi_margin_loss,
    torch.nn.functional.multilabel_margin_loss: multilabel_margin_loss,
    torch.nn.functional.max_unpool1d: max_unpool(torch.nn.functional.max_unpool1d),
    torch.nn.functional.max_unpool2d: max_unpool(torch.nn.functional.max_unpool2d),
    torch.nn.functional.max_unpool3d: max_unpool(torch.nn.functional.max_unpool3d),
}
"""What stands for an operation of torch where functions of the user's are called."""
