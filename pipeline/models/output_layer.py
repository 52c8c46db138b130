"""The Bernoulli output layer, four fifths of a step's arithmetic: logits, likelihood and its gradient in one go."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models import fused
from pipeline.models.kernels import bernoulli
from pipeline.models.products import affine, product


def output_layer(
    hidden: Tensor, weight: Tensor, bias: Tensor, x: Tensor, backward_follows: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """log p(x | hidden) of every sample, [R, T, B] nats, and its gradients in the logits and in `hidden`.

    `hidden`: [R, T * B, inputs]. `weight`: [R, inputs, pixels]. `bias`: [R, 1, pixels]. `x`: [R, B, pixels] in {0, 1}.
    The gradients, [R, T * B, pixels] and [R, T * B, inputs], are None unless `backward_follows`.
    """
    if backward_follows and fused.wanted(hidden):
        rows = torch.ops.good_elbo.output_layer(hidden, weight, bias, x, torch.backends.cuda.matmul.allow_tf32)
        log_px, residual, d_hidden = rows
        return log_px, residual, d_hidden
    logits = affine(hidden, weight, bias)
    log_px, residual = bernoulli(logits, x, residual=backward_follows)
    return log_px, residual, None if residual is None else product(residual, weight.mT)
