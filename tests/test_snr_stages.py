"""The toy's stage and the optional second opinion, as a user runs them."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.data.datasets import load_dataset
from pipeline.errors import UserError
from pipeline.evaluation.snr import common_batch, one_batch, snr_at
from pipeline.experiments.cohorts import load_cohort
from pipeline.experiments.grid import write_cohorts
from pipeline.experiments.params import load_params
from pipeline.files import read_json
from pipeline.models.networks import initial_weights
from pipeline.paths import Paths
from pipeline.records.run_folder import RUN_JSON, WEIGHTS, read_weights, save_weights
from pipeline.records.sealed import read_sealed_json, write_sealed_json
from pipeline.records.trained import named_run, trained, trained_run
from pipeline.reporting.evidence.toy import load_toy
from pipeline.reporting.sections.ais import ais_tables
from stages import ais, snr, toy
from tests.conftest import ROOT, write_dataset
from tests.experiments.test_params import changed

COHORT, RUN = "small/first-mnist-1L-T5", "iwae-M1-K5-s0"
TOY = {"seed": 0, "samples": [1, 4], "gradients": 16}


def call(monkeypatch: pytest.MonkeyPatch, stage: Any, project: Path, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["stage", *arguments])
    stage.main(Paths(project))


@pytest.fixture
def project(tmp_path: Path, grey_images: NDArray[np.uint8]) -> Path:
    """Parameters with a small toy, and one run that was never trained."""
    paths = Paths(tmp_path)
    paths.params.write_text(yaml.safe_dump(changed("scales.small.toy", TOY)))
    write_cohorts(load_params(paths.params), paths.cohorts)
    write_dataset(paths.binarized("mnist"), grey_images)
    run = next(run for run in load_cohort(paths.cohorts, COHORT).runs if run.name == RUN)
    folder = tmp_path / "runs" / COHORT / "training" / RUN
    folder.mkdir(parents=True)
    flat = initial_weights(run.latent, run.protocol, 0, grey_images.mean(0) / 255)
    save_weights(folder / WEIGHTS, run.latent, flat, "d", 0)
    few = replace(run, train_images=len(load_dataset(paths.binarized("mnist")).train_images))
    content = {"spec": few.to_json(), "digest": "d", "steps": 0, "status": "finished", "training": {}, "files": {}}
    write_sealed_json(folder / RUN_JSON, content)
    return tmp_path


def test_toy_stage_writes_what_the_report_reads(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, toy, project, "small")
    written = load_toy(project / "reports/small/results")
    assert written is not None
    assert written.samples.tolist() == [1, 4]
    assert written.metrics["gradients"] == 16
    assert written.arrays["iwae/A/snr"].shape == (2, 400)
    assert "small toy: slopes over K: IWAE encoder" in capsys.readouterr().out
    told = f"paper: no scale with a `toy` in {project}/params.yaml; choose one of small"
    with pytest.raises(UserError, match=re.escape(told)):
        call(monkeypatch, toy, project, "paper")


def test_second_opinion_says_what_it_takes_and_is_shown(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, ais, project, COHORT, RUN, "--images", "3", "--steps", "4", "--chains", "2")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{COHORT}/{RUN}: 3 test and 3 simulated images, 2 chains, 4 temperatures: about ")
    assert last.startswith("NLL of 3 test images: ")
    results = project / "reports/small/results"
    written = read_json(results / "first-mnist-1L-T5" / f"ais-{RUN}.json")
    assert written["digest"] == "d"
    assert written["how"]["transitions"] == 4
    assert written["how"]["num_samples"] == 130
    assert len(written["images"]["simulated/upper"]) == 3
    (table,) = ais_tables(results)
    assert table.display["run"].tolist() == [RUN]


def test_second_opinions_of_a_scale_are_those_of_vae_and_iwae_at_every_dataset_and_depth(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"small: no scale with burda-table1; choose one of "):
        call(monkeypatch, ais, project, "small")
    pairs = ais.pairs_of("paper", Paths(ROOT))
    cells = [(cohort.dataset, run.layers, run.objective, run.T, run.seed) for cohort, run in pairs]
    expected = {
        (dataset, layers, name, k, 0)
        for dataset in ("mnist", "omniglot")
        for layers in (1, 2)
        for name, k in (("vae", 1), ("iwae", 50))
    }
    assert set(cells) == expected
    assert len(cells) == 8


def test_a_second_opinion_is_not_asked_twice(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort, run = named_run(COHORT, RUN, Paths(project))
    pairs = [(cohort, run), (cohort, replace(run, name="vae-M1-K1-s0"))]
    monkeypatch.setattr(ais, "pairs_of", lambda scale, paths: pairs)
    asked = ("small", "--images", "3", "--steps", "4", "--chains", "2")
    call(monkeypatch, ais, project, *asked)
    assert "vae-M1-K1-s0: not trained yet; left out" in capsys.readouterr().out
    call(monkeypatch, ais, project, *asked)
    assert f"{COHORT}/{RUN}: done before -> " in capsys.readouterr().out
    call(monkeypatch, ais, project, *asked[:-1], "3")
    assert "done before" not in capsys.readouterr().out


def test_second_opinion_refuses_what_it_cannot_check(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no run 'vae'; choose one of iwae-M1-K5-s0"):
        call(monkeypatch, ais, project, COHORT, "vae")
    with pytest.raises(SystemExit):
        call(monkeypatch, ais, project, COHORT, RUN, "--chains", "1")
    path = project / "runs" / COHORT / "training" / RUN / RUN_JSON
    write_sealed_json(path, read_sealed_json(path) | {"status": "diverged at step 3"})
    with pytest.raises(UserError, match=f"{COHORT}/{RUN} diverged at step 3"):
        call(monkeypatch, ais, project, COHORT, RUN)
    shutil.rmtree(project / "runs")
    with pytest.raises(UserError, match=f"{COHORT}/{RUN}: not trained yet, and its weights are not shipped; run `dvc"):
        call(monkeypatch, ais, project, COHORT, RUN)


def test_every_estimator_is_asked_at_the_same_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of the table for each of the paper's five, with what the evaluation of a run of its own would say."""
    call(monkeypatch, snr, project, COHORT, RUN, "--gradients", "16")
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["VAE(64, 1)", "CIWAE(β=0.5)", "MIWAE(8, 8)", "PIWAE(8, 8)", "IWAE(1, 64)"]
    assert [row[5] for row in rows[2:]] == ["~ 0.82", "~ 0.5", "~ 0.42", "~ 0.3", "~ 0.18"]
    model = trained_run(COHORT, RUN, Paths(project))
    iwae = replace(model.spec, objective="iwae", M=1, K=64, parameter=None)
    flat = read_weights(model.weights, iwae.latent, model.digest)
    grey = load_dataset(Paths(project).binarized("mnist")).train_images
    fixed = one_batch(common_batch(grey, iwae.train_images, 123, flat.device))
    measured = snr_at(flat, iwae, fixed, 16, 123)
    assert rows[-1][1] == f"{measured['snr_encoder']:.3f} ± {measured['snr_encoder_se']:.3f}"
    # PIWAE's encoder has MIWAE's gradient, and its decoder IWAE's.
    assert rows[5][1:3] == rows[4][1:3]
    assert rows[5][3:5] == rows[6][3:5]


def test_snr_refuses_what_it_cannot_measure(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no run 'vae'; choose one of iwae-M1-K5-s0"):
        call(monkeypatch, snr, project, COHORT, "vae")
    with pytest.raises(SystemExit):
        call(monkeypatch, snr, project, COHORT, RUN, "--gradients", "8")
    shutil.rmtree(project / "runs")
    with pytest.raises(UserError, match=f"{COHORT}/{RUN}: not trained yet, and its weights are not shipped; run `dvc"):
        call(monkeypatch, snr, project, COHORT, RUN)


def test_a_second_opinion_takes_the_weights_that_are_shipped(tmp_path: Path) -> None:
    for name in ("cohorts", "reports"):
        (tmp_path / name).symlink_to(ROOT / name)
    paths = Paths(tmp_path)
    cohort, run = named_run("quick/burda-table1-mnist-1L-T1", "vae-M1-K1-s0", paths)
    model = trained(cohort, run, paths)
    assert model is not None
    assert model.weights == paths.weights("quick") / cohort.key.partition("/")[2] / f"{run.name}.safetensors"
    assert read_weights(model.weights, model.spec.latent, model.digest).isfinite().all()
