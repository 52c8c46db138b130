"""The Bernoulli output layer, four fifths of a step's arithmetic: logits, likelihood and its gradient in one go."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pipeline.models.products import IN_FLOAT32, Arithmetic, affine, product


def output_layer(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    backward_follows: bool,
    arithmetic: Arithmetic = IN_FLOAT32,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """log p(x | hidden) of every sample, [R, T, B] nats, and its gradients in the logits and in `hidden`.

    `hidden`: [R, T * B, inputs]. `weight`: [R, inputs, pixels]. `bias`: [R, 1, pixels]. `x`: [R, B, pixels] in {0, 1}.
    The gradients, [R, T * B, pixels] and [R, T * B, inputs], are None unless `backward_follows`.
    """
    if backward_follows and arithmetic.fused_output and hidden.dtype == torch.float32:
        log_px, residual, d_hidden = torch.ops.good_elbo.output_layer(hidden, weight, bias, x, arithmetic.tf32)
        return log_px, residual, d_hidden
    logits = affine(hidden, weight, bias, arithmetic=arithmetic)
    log_px, residual = bernoulli(logits, x, residual=backward_follows)
    return log_px, residual, None if residual is None else product(residual, weight.mT, arithmetic)


def bernoulli(logits: Tensor, x: Tensor, residual: bool) -> tuple[Tensor, Tensor | None]:
    """log p(x | logits) of every sample, [R, T, B] nats, and if asked x - sigmoid(logits), [R, T * B, pixels].

    `logits`: [R, T * B, pixels]. `x`: [R, B, pixels] in {0, 1}.
    """
    R, rows, pixels = logits.shape
    B = x.shape[1]
    by_sample, image = logits.view(R, rows // B, B, pixels), x.unsqueeze(1)
    log_px = (by_sample * image).sum(-1) - softplus(by_sample).sum(-1)
    return log_px, (image - by_sample.sigmoid()).view_as(logits) if residual else None
