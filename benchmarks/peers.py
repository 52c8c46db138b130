"""pythae's own trainer and `get_nll` on the papers' network, as its users run them; pythae is optional."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import LATENT, NLL_SAMPLES, TRAINING, Case
from benchmarks.measure import Tick
from pipeline.spec import BATCH_SIZE

INSTALL = "pip install -e '.[bench]'"
EPOCHS = 1_000_000
ADAM = {"betas": (0.9, 0.999), "eps": 1e-4}
SAMPLES_PER_BATCH = 500
"""Of `get_nll`: its default is 100; from there to 1000 it is as fast, at 5000 slower."""


def version() -> str | None:
    """Of the pythae installed here; None without one."""
    return importlib.metadata.version("pythae") if importlib.util.find_spec("pythae") else None


def load() -> None:
    """Import pythae ahead of the processes that are forked, which then need not."""
    with _quiet():
        for name in ("models", "pipelines", "trainers", "data.datasets"):
            importlib.import_module(f"pythae.{name}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without its log and progress bar, which it goes on computing."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _networks() -> tuple[nn.Module, nn.Module]:
    """Encoder 784-200-200-50 and decoder 50-200-200-784, tanh, in pythae's shape."""
    base: Any = importlib.import_module("pythae.models.nn")
    output: Any = importlib.import_module("pythae.models.base.base_utils").ModelOutput

    class Encoder(base.BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
            self.mean = nn.Linear(200, LATENT[0])
            self.log_variance = nn.Linear(200, LATENT[0])

        def forward(self, x: Tensor) -> Any:
            hidden = self.hidden(x)
            return output(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))

    class Decoder(base.BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(LATENT[0], 200),
                nn.Tanh(),
                nn.Linear(200, 200),
                nn.Tanh(),
                nn.Linear(200, 784),
                nn.Sigmoid(),
            )

        def forward(self, z: Tensor) -> Any:
            return output(reconstruction=self.layers(z))

    return Encoder(), Decoder()


def _model(case: Case) -> Any:
    models: Any = importlib.import_module("pythae.models")
    shared = {"input_dim": (784,), "latent_dim": LATENT[0], "reconstruction_loss": "bce"}
    encoder, decoder = _networks()
    if case.objective == "vae":
        return models.VAE(models.VAEConfig(**shared), encoder, decoder)
    if case.objective == "iwae":
        return models.IWAE(models.IWAEConfig(**shared, number_samples=case.K), encoder, decoder)
    kind = case.objective.upper()
    config = getattr(models, f"{kind}Config")(**shared, number_samples=case.K, number_gradient_estimates=case.M)
    return getattr(models, kind)(config, encoder, decoder)


def _training_config(case: Case, folder: str, device: torch.device) -> Any:
    trainers: Any = importlib.import_module("pythae.trainers")
    shared = {
        "output_dir": folder,
        "num_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH_SIZE,
        "no_cuda": device.type != "cuda",
    }
    if case.objective == "piwae":
        return trainers.CoupledOptimizerTrainerConfig(
            **shared,
            encoder_learning_rate=1e-3,
            decoder_learning_rate=1e-3,
            encoder_optimizer_params=ADAM,
            decoder_optimizer_params=ADAM,
        )
    return trainers.BaseTrainerConfig(**shared, learning_rate=1e-3, optimizer_params=ADAM)


def _callback(tick: Tick) -> Any:
    base: Any = importlib.import_module("pythae.trainers.training_callbacks").TrainingCallback

    class Ticks(base):  # type: ignore[misc]
        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            tick(1)

    return Ticks()


def train(rank: int, tick: Tick, *, case: Case, bits: Tensor, device: torch.device) -> None:
    """Units: steps. `bits`: its data set, [N, 784] in {0, 1}, binarized once and for all."""
    pipelines: Any = importlib.import_module("pythae.pipelines")
    datasets: Any = importlib.import_module("pythae.data.datasets")
    torch.manual_seed(rank)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        pipeline = pipelines.TrainingPipeline(
            model=_model(case), training_config=_training_config(case, folder, device)
        )
        data = datasets.BaseDataset(bits, torch.zeros(len(bits)))
        pipeline(train_data=data, callbacks=[_callback(tick)])


@torch.no_grad()
def estimate_nll(rank: int, tick: Tick, *, bits: Tensor, device: torch.device) -> None:
    """Units: images."""
    torch.manual_seed(rank)
    with _quiet():
        model = _model(TRAINING[0]).to(device)
        for image in bits.to(device).split(1):
            model.get_nll(image, n_samples=NLL_SAMPLES, batch_size=SAMPLES_PER_BATCH)
            tick(1)
