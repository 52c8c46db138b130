"""The model of `examples.one_run` with the pipeline's weights, and its gradients under the pipeline's names."""

from __future__ import annotations

from torch import Tensor

from examples.one_run import Model
from pipeline.models.networks import Gradient, Parameters


def _pipeline_name(name: str) -> str:
    """`q1.mean.weight` for `encoder.q1.mean.weight`."""
    return name.partition(".")[2]


def model_of(p: Parameters, run: int = 0) -> Model:
    """One run's model, in the precision of its weights."""
    named = p.named_tensors(run)
    model = Model(p.latent).to(p.flat.dtype)
    # A weight is [inputs, outputs] in the pipeline and [outputs, inputs] in torch's layers.
    model.load_state_dict({name: named[_pipeline_name(name)].t().clone() for name in model.state_dict()})
    return model


def by_name(model: Model, tensors: list[Tensor] | tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Tensors in the order of `model.parameters()`, under the pipeline's names and in its layout."""
    names = [_pipeline_name(name) for name, _ in model.named_parameters()]
    return {name: tensor.detach().t() for name, tensor in zip(names, tensors, strict=True)}


def gradients_of(model: Model) -> dict[str, Tensor]:
    """What `.grad` holds."""
    gradients = [parameter.grad for parameter in model.parameters()]
    return by_name(model, [gradient for gradient in gradients if gradient is not None])


def pipeline_gradients(gradient: Gradient, run: int = 0) -> dict[str, Tensor]:
    """One run's gradient by the same names."""
    named = {f"{name}.weight": weight[run] for name, weight in gradient.weight.items()}
    return named | {f"{name}.bias": bias[run, 0] for name, bias in gradient.bias.items()}
