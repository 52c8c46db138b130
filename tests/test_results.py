from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.results import RunResult, load_results, save_results
from tests.conftest import make_run


def test_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    results = [
        RunResult(
            cohort="quick/burda-table1-mnist-1L-T5",
            experiment="burda-table1",
            spec=make_run(name=name),
            digest=f"digest of {name}",
            status=status,
            training={"wall_s": 1.5, "data": {"digest": "x"}},
            evaluation={"digest": "y"},
            metrics={"nll": 90.25},
            arrays={"log_p_hat": rng.normal(-90, 9, 7).astype(np.float32), "samples": rng.random((100, 784))},
        )
        for name, status in (("b", "finished"), ("a", "diverged at step 3"))
    ]
    save_results(tmp_path / "burda-table1-mnist-1L-T5", results)
    back = {result.spec.name: result for result in load_results(tmp_path)}
    assert set(back) == {"a", "b"}
    for result in results:
        own = back[result.spec.name]
        assert (own.spec, own.digest, own.status, own.metrics) == (
            result.spec,
            result.digest,
            result.status,
            result.metrics,
        )
        assert own.scale == "quick"
        assert own.cell == f"quick/burda-table1-mnist-1L-T5/{result.spec.name}"
        np.testing.assert_array_equal(own.arrays["log_p_hat"], result.arrays["log_p_hat"])
        np.testing.assert_allclose(own.arrays["samples"], result.arrays["samples"], atol=0.5 / 255 + 1e-6)


def test_no_results_is_an_empty_list(tmp_path: Path) -> None:
    assert load_results(tmp_path / "nowhere") == []
