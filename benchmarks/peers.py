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

from benchmarks.cases import LATENTS, Case, binarized, training_images
from benchmarks.measure import Tick, Work
from pipeline.data.catalogue import PIXELS
from pipeline.experiments.spec import BATCH_SIZE, NLL_SAMPLES

LATENT = LATENTS[0]
EPOCHS = 1_000_000
ADAM = {"betas": (0.9, 0.999), "eps": 1e-4}
SAMPLES_PER_BATCH = 500
"""Samples in a batch of `get_nll`, whose default is 100; from there to 1000 it is as fast, at 5000 slower."""


def missing() -> str | None:
    """Why it cannot be measured here."""
    return None if importlib.util.find_spec("pythae") else "pythae is not installed: pip install -e '.[bench]'"


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
            self.hidden = nn.Sequential(nn.Linear(PIXELS, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
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
                nn.Linear(200, PIXELS),
                nn.Sigmoid(),
            )

        def forward(self, z: Tensor) -> Any:
            return output(reconstruction=self.layers(z))

    return Encoder(), Decoder()


SHARED = {"input_dim": (PIXELS,), "latent_dim": LATENT[0], "reconstruction_loss": "bce"}


def _vae() -> Any:
    models: Any = importlib.import_module("pythae.models")
    return models.VAE(models.VAEConfig(**SHARED), *_networks())


def _model(case: Case) -> Any:
    if case.objective == "vae":
        return _vae()
    models: Any = importlib.import_module("pythae.models")
    encoder, decoder = _networks()
    if case.objective == "iwae":
        return models.IWAE(models.IWAEConfig(**SHARED, number_samples=case.K), encoder, decoder)
    kind = case.objective.upper()
    config = getattr(models, f"{kind}Config")(**SHARED, number_samples=case.K, number_gradient_estimates=case.M)
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


def train(case: Case, bits: Tensor, device: torch.device) -> Work:
    """Units: updates. `bits`: its data set, [N, 784] in {0, 1}, binarized once and for all."""
    pipelines: Any = importlib.import_module("pythae.pipelines")
    datasets: Any = importlib.import_module("pythae.data.datasets")

    def run(tick: Tick) -> None:
        torch.manual_seed(0)
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            config = _training_config(case, folder, device)
            pipeline = pipelines.TrainingPipeline(model=_model(case), training_config=config)
            data = datasets.BaseDataset(bits, torch.zeros(len(bits)))
            pipeline(train_data=data, callbacks=[_callback(tick)])

    return run


def nll(bits: Tensor, device: torch.device) -> Work:
    """Units: images."""

    @torch.no_grad()
    def run(tick: Tick) -> None:
        torch.manual_seed(0)
        with _quiet():
            model = _vae().to(device)
            for image in bits.to(device).split(1):
                model.get_nll(image, n_samples=NLL_SAMPLES, batch_size=SAMPLES_PER_BATCH)
                tick(1)

    return run


def work(value: dict[str, Any]) -> Work:
    """Units: updates or images, on the CPU."""
    case = Case.of(value)
    if case.latent != LATENT:
        raise NotImplementedError("its networks have one stochastic layer")
    with _quiet():
        bits, device = binarized(training_images()), torch.device("cpu")
        return nll(bits, device) if case.is_nll else train(case, bits, device)
