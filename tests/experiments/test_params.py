"""params.yaml: every mistake is refused with file, key and what is allowed."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.experiments.params import Params, ToyParams, load_params
from pipeline.experiments.spec import ToySpec
from tests.conftest import ROOT

SMALL: dict[str, Any] = {
    "algorithm_version": 1,
    "device": "cpu",
    "workers": 2,
    "engine": "auto",
    "checkpoint_seconds": 30,
    "data": {"test_binarization_seed": 123},
    "experiments": {
        "first": {"T": [1, 5], "settings": [{"objective": "vae"}, {"objective": "iwae", "K": 5}]},
        "second": {
            "T": [5],
            "schedule": [{"epochs": 3, "learning_rate": 1e-4}],
            "settings": [{"objective": "iwae", "K": 5, "after": {"experiment": "first", "objective": "vae"}}],
        },
    },
    "scales": {
        "small": {
            "protocol": "published-code",
            "precision": "float32",
            "seeds": [0],
            "stages": 8,
            "max_steps": 30,
            "evaluation": {
                "seed": 123,
                "num_samples": 130,
                "bound_samples": 64,
                "test_images": 10,
                "train_images": 0,
                "pruned_images": 10,
                "diagnostic_images": 20,
            },
            "experiments": {
                "first": {"datasets": ["mnist"], "layers": [1]},
                "second": {"datasets": ["mnist"], "layers": [1]},
            },
        }
    },
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """SMALL with another value at a place such as `experiments.first.settings.1.K`."""
    params = copy.deepcopy(SMALL)
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    place: Any = params
    for part in path:
        place = place[part]
    place[last] = value
    return params


def small(key: str = "device", value: Any = "cpu") -> Params:
    return Params.model_validate(changed(key, value))


def written(folder: Path, params: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path


def refusal(path: Path) -> list[str]:
    """The lines in which a file is refused, without its name, which begins each."""
    with pytest.raises(UserError) as caught:
        load_params(path)
    text = str(caught.value)
    assert "Traceback" not in text
    assert "pydantic" not in text
    lines = text.splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines), text
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_committed_parameters_load() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(params.scales) == {"quick", "overnight", "paper"}


def test_small_parameters_load(tmp_path: Path) -> None:
    params = load_params(written(tmp_path, SMALL))
    # A number stands for a list of one.
    assert params.experiments["first"].settings[1].K == [5]
    assert params.scales["small"].evaluation.spec().num_samples == 130


def test_an_experiment_changes_single_keys_of_the_evaluation() -> None:
    scale = small("scales.small.experiments.second.evaluation", {"snr_gradients": 20, "test_images": None}).scales[
        "small"
    ]
    plain = scale.evaluation.spec()
    assert scale.evaluation_spec("first") == plain
    assert scale.evaluation_spec("second") == replace(plain, snr_gradients=20, test_images=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smaples": 3}, "smaples: unknown key; allowed here: seed, num_samples, bound_samples"),
        ({"snr_gradients": 5}, "snr_gradients: Input should be"),
        ({"num_samples": 10}, "bound_samples: must not exceed num_samples"),
    ],
)
def test_wrong_evaluation_of_an_experiment(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, changed("scales.small.experiments.second.evaluation", changes))
    with pytest.raises(UserError) as caught:
        load_params(path)
    assert str(caught.value).startswith(f"{path}: scales.small.experiments: second.evaluation.{message}")
    assert "\n" not in str(caught.value)


def test_toy_of_a_scale() -> None:
    toy = {"seed": 3, "samples": [1, 8], "gradients": 16}
    assert small("scales.small.toy", toy).scales["small"].toy == ToyParams(**toy)
    assert ToyParams(**toy).spec() == ToySpec(3, (1, 8), 16)


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("", "algorithm_version, device, workers, engine, checkpoint_seconds, data, experiments, scales"),
        ("data.", "test_binarization_seed"),
        ("experiments.first.", "T, settings, schedule, latent, one_cohort"),
        ("experiments.first.settings.1.", "objective, M, K, parameter, protocol, after"),
        ("experiments.second.settings.0.after.", "experiment, objective, M, K, parameter"),
        pytest.param(
            "experiments.second.schedule.0.",
            "epochs, learning_rate",
        ),
        (
            "scales.small.",
            "protocol, precision, seeds, judged, stages, max_steps, evaluation, earlier, toy, experiments",
        ),
        (
            "scales.small.evaluation.",
            "seed, num_samples, bound_samples, test_images, train_images, pruned_images, diagnostic_images,"
            " snr_gradients, binarizations, binarization_images, binarization_samples",
        ),
        (
            "scales.small.experiments.first.",
            "datasets, layers, T, protocol, seeds, seeds_at, stages, epochs, max_steps, evaluation",
        ),
    ],
)
def test_misspelt_key(place: str, allowed: str, tmp_path: Path) -> None:
    key = f"{place}mistake"
    assert refusal(written(tmp_path, changed(key, 1))) == [f"{key}: unknown key; allowed here: {allowed}"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "gpu", "device: Input should be 'auto', 'cpu' or 'cuda', not 'gpu'"),
        ("algorithm_version", "1", "algorithm_version: Input should be a valid integer, not '1'"),
        ("algorithm_version", True, "algorithm_version: Input should be a valid integer, not True"),
        ("checkpoint_seconds", 0, "checkpoint_seconds: Input should be greater than 0, not 0"),
        ("experiments.first", None, "experiments.first: Input should be a valid dictionary"),
        ("experiments.first.settings", [], "experiments.first.settings: List should have at least 1 item"),
        (
            "experiments.first.settings.1.K",
            0,
            "experiments.first.settings.1.K.0: Input should be greater than or equal",
        ),
        ("experiments.first.settings.1.M", [1, 0], "experiments.first.settings.1.M.1: Input should be greater than"),
        ("experiments.first.settings.1.K", "5", "experiments.first.settings.1.K.0: Input should be a valid integer"),
        ("scales", {}, "scales: Dictionary should have at least 1 item"),
        ("scales.small.seeds", [-1], "scales.small.seeds.0.0: Input should be greater than or equal to 0, not -1"),
        ("scales.small.seeds", [], "scales.small.seeds: List should have at least 1 item"),
        ("scales.small.seeds", [0, [1, 0]], "scales.small.seeds: seed 0 is there more than once"),
        ("scales.small.stages", 9, "scales.small.stages: Input should be less than or equal to 8, not 9"),
        (
            "scales.small.precision",
            "half",
            "scales.small.precision: Input should be 'float32', 'tf32', 'bfloat16', 'bfloat16-backward' or 'float64'",
        ),
        (
            "scales.small.evaluation.bound_samples",
            32,
            "scales.small.evaluation.bound_samples: is 64, because the bound",
        ),
        ("scales.small.evaluation.num_samples", 63, "scales.small.evaluation.bound_samples: must not exceed num_"),
        (
            "scales.small.experiments.first.datasets",
            "mnist",
            "scales.small.experiments.first.datasets: Input should be",
        ),
        ("scales.small.experiments.first.layers", [3], "scales.small.experiments.first.layers.0: Input should be less"),
    ],
)
def test_wrong_type_or_value(key: str, value: Any, message: str, tmp_path: Path) -> None:
    (line,) = refusal(written(tmp_path, changed(key, value)))
    assert line.startswith(message)


INFINITE, NAN = float("inf"), float("nan")
SETTING = "experiments.first.settings.1"
EVALUATION = "scales.small.evaluation"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_seconds", INFINITE),
        ("checkpoint_seconds", NAN),
        ("workers", 10**6),
        ("data.test_binarization_seed", 2**32),
        (f"{SETTING}.K", 10**6),
        (f"{SETTING}.M", [10**6]),
        (f"{SETTING}.parameter", NAN),
        (f"{SETTING}.parameter", [0.5, INFINITE]),
        (f"{SETTING}.parameter", -INFINITE),
        (f"{SETTING}.protocol", {"adam_beta1": 2.0}),
        (f"{SETTING}.protocol", {"adam_beta1": 1.0}),
        (f"{SETTING}.protocol", {"adam_beta1": NAN}),
        (f"{SETTING}.protocol", {"adam_beta2": 1}),
        (f"{SETTING}.protocol", {"adam_beta2": -0.1}),
        (f"{SETTING}.protocol", {"adam_eps": 0.0}),
        (f"{SETTING}.protocol", {"second_moment_start": -1.0}),
        ("experiments.first.latent", [10**6]),
        ("experiments.second.schedule.0.epochs", 10**12),
        ("experiments.second.schedule.0.learning_rate", NAN),
        ("scales.small.seeds", [2**32]),
        ("scales.small.seeds", [[0, 2**32]]),
        ("scales.small.max_steps", 10**12),
        ("scales.small.experiments", {}),
        (f"{EVALUATION}.seed", 2**32),
        (f"{EVALUATION}.num_samples", 10**9),
        (f"{EVALUATION}.test_images", 10**9),
        (f"{EVALUATION}.train_images", 10**9),
        (f"{EVALUATION}.diagnostic_images", 10**9),
        (f"{EVALUATION}.snr_gradients", 10**9),
        ("scales.small.toy", {"seed": 2**32, "samples": [1], "gradients": 16}),
        ("scales.small.toy", {"seed": 0, "samples": [10**6], "gradients": 16}),
    ],
)
def test_numbers_that_cannot_mean_anything(key: str, value: Any, tmp_path: Path) -> None:
    lines = refusal(written(tmp_path, changed(key, value)))
    assert lines
    assert all(line.startswith(key.split(".")[0]) and key.split(".")[-1] in line for line in lines)


def test_the_largest_seed_is_one() -> None:
    assert small("scales.small.seeds", [2**32 - 1]).scales["small"].seeds == [[2**32 - 1]]


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    text = path.read_text().replace("  second:\n", "  first:\n    T: [1]\n  second:\n", 1)
    path.write_text(text)
    (line,) = refusal(path)
    assert "the key 'first' is there twice" in line


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", None])
def test_workers_is_a_count_or_auto(value: Any, tmp_path: Path) -> None:
    lines = refusal(written(tmp_path, changed("workers", value)))
    assert all(line.startswith("workers") for line in lines)
    assert any("'auto'" in line and f"not {value!r}" in line for line in lines)
    assert load_params(written(tmp_path, changed("workers", "auto"))).workers == "auto"


def test_workers_is_named_as_in_the_file(tmp_path: Path) -> None:
    lines = refusal(written(tmp_path, changed("workers", 0)))
    assert all(line.startswith("workers: ") for line in lines)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "Input should be greater than 0, not 0"),
        (-1e-3, "Input should be greater than 0, not -0.001"),
        (float("nan"), "Input should be"),
        ("slow", "Input should be a valid number, not 'slow'"),
        pytest.param(float("inf"), "Input should be"),
    ],
)
def test_learning_rate(value: Any, message: str, tmp_path: Path) -> None:
    key = "experiments.second.schedule.0.learning_rate"
    (line,) = refusal(written(tmp_path, changed(key, value)))
    assert line.startswith(f"{key}: {message}")


DATASET_NAMES = "mnist, fixed-mnist, omniglot"
PROTOCOL_NAMES = "published-code, paper-text"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "scales.small.experiments.first.datasets",
            ["mnist", "mnits"],
            f"scales.small.experiments.first.datasets.1: unknown dataset 'mnits'; allowed: {DATASET_NAMES}",
        ),
        ("scales.small.protocol", "code", f"scales.small.protocol: unknown protocol 'code'; allowed: {PROTOCOL_NAMES}"),
        (
            "scales.small.experiments.first.protocol",
            "code",
            f"scales.small.experiments.first.protocol: unknown protocol 'code'; allowed: {PROTOCOL_NAMES}",
        ),
        (
            "scales.small.experiments.third",
            {"datasets": ["mnist"], "layers": [1]},
            "scales: small.experiments: unknown experiment 'third'; allowed: first, second",
        ),
    ],
)
def test_unknown_names(key: str, value: Any, message: str, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, changed(key, value))) == [message]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"adam_beta3": 0.9}, "unknown field 'adam_beta3' of a protocol; allowed: adam_beta1, second_moment_start, "),
        ({"shuffle": "yes"}, "shuffle is true or false, not 'yes'"),
        ({"shuffle": 1}, "shuffle is true or false, not 1"),
        ({"adam_beta1": True}, "adam_beta1 is a number, not True"),
        ({"gradient": "median"}, "gradient is sum or mean, not 'median'"),
        ("code", "'code' is neither a protocol (published-code, paper-text) nor a mapping of fields to switch"),
        (3, "3 is neither a protocol"),
    ],
)
def test_protocol_of_a_setting(value: Any, message: str, tmp_path: Path) -> None:
    key = "experiments.first.settings.1.protocol"
    (line,) = refusal(written(tmp_path, changed(key, ["paper-text", value])))
    assert line.startswith(f"{key}.1: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_image": 5}, "test_image: unknown key; allowed here: seed, num_samples, "),
        ({"test_images": 1}, "test_images: Input should be greater than or equal to 2, not 1"),
        ({"num_samples": 63}, "bound_samples: must not exceed num_samples"),
    ],
)
def test_evaluation_of_an_experiment(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (line,) = refusal(written(tmp_path, changed("scales.small.experiments.first.evaluation", change)))
    assert line.startswith(f"scales.small.experiments: first.evaluation.{message}")


@pytest.mark.parametrize(
    ("key", "value"),
    [("scales.small.protocol", ["paper-text"]), ("scales.small.experiments.first.datasets", [{"mnist": None}])],
)
def test_a_list_or_mapping_is_no_name(key: str, value: Any, tmp_path: Path) -> None:
    (line,) = refusal(written(tmp_path, changed(key, value)))
    assert line.startswith(key)
    assert "allowed: " in line


def test_missing_key_and_several_mistakes(tmp_path: Path) -> None:
    params = changed("scales.small.stages", 0)
    del params["device"]
    lines = refusal(written(tmp_path, params))
    assert lines == [
        "device: Field required",
        "scales.small.stages: Input should be greater than or equal to 1, not 0",
    ]


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "params.yaml") == ["missing; run from the project's folder"]


@pytest.mark.parametrize("text", ["scales: [1,\nb: {", "data:\n\tseed: 1\n"])
def test_invalid_yaml_is_one_line_with_the_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    (line,) = refusal(path)
    assert line.startswith("line 2: not valid YAML: ")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_an_empty_file_says_so(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    (line,) = refusal(path)
    assert line.startswith("is empty; ")


@pytest.mark.parametrize("text", ["- a list\n", "text"])
def test_no_mapping(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    (line,) = refusal(path)
    assert "Input should be a valid dictionary" in line


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"device: \xff\n")
    assert len(refusal(path)) == 1


def test_digest_follows_values_alone(tmp_path: Path) -> None:
    digest = load_params(written(tmp_path, SMALL)).digest()
    other_layout = tmp_path / "layout.yaml"
    reordered = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in SMALL.items()
    }
    other_layout.write_text("# a comment\n" + yaml.safe_dump(reordered, default_flow_style=True, sort_keys=False))
    assert load_params(other_layout).digest() == digest
    for key, value in [
        ("workers", 1),
        ("data.test_binarization_seed", 124),
        ("experiments.first.settings.1.K", [1, 5]),
        ("scales.small.evaluation.test_images", None),
        ("scales.small.experiments.first.seeds", [1]),
    ]:
        assert load_params(written(tmp_path, changed(key, value))).digest() != digest, key


def test_command_ends_in_one_line(tmp_path: Path) -> None:
    written(tmp_path, changed("scales.small.protocol", "code"))
    command = [sys.executable, "-m", "pipeline.experiments"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    expected = f"params.yaml: scales.small.protocol: unknown protocol 'code'; allowed: {PROTOCOL_NAMES}"
    assert done.stderr == f"error: {expected}\n"
    assert not (tmp_path / "cohorts").exists()
