from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import omniglot
from pipeline.errors import UserError

Split = NDArray[np.uint8]


@pytest.fixture(scope="module")
def rebuilt(mirror_folder: Path) -> tuple[Split, Split]:
    if not all((mirror_folder / "omniglot" / f"{part}.zip").is_file() for part in omniglot.PARTS):
        pytest.skip("the data mirror lacks OMNIGLOT's zips")
    return omniglot.rebuild(mirror_folder / "omniglot")


@pytest.fixture(scope="module")
def reference(mirror_folder: Path) -> tuple[Split, Split]:
    path = mirror_folder / "omniglot" / "chardata_rebuilt.mat"
    if not path.is_file():
        pytest.skip("the data mirror lacks omniglot/chardata_rebuilt.mat")
    return omniglot.read_chardata(path)


def test_split_sizes(rebuilt: tuple[Split, Split]) -> None:
    assert [part.shape for part in rebuilt] == [(24345, 784), (8070, 784)]
    assert all(part.dtype == np.uint8 for part in rebuilt)


@pytest.mark.parametrize("split", [0, 1])
def test_rebuild_gives_the_reference_images(
    split: int, rebuilt: tuple[Split, Split], reference: tuple[Split, Split]
) -> None:
    """As sets; where grey falls on .5 exactly, the reference's rounding errors may decide for one level more."""
    ours = {row.tobytes() for row in rebuilt[split]}
    theirs = {row.tobytes() for row in reference[split]}
    assert len(ours) == len(rebuilt[split])
    left = np.array([np.frombuffer(row, np.uint8) for row in sorted(ours - theirs)], np.int16).reshape(-1, 784)
    right = np.array([np.frombuffer(row, np.uint8) for row in sorted(theirs - ours)], np.int16).reshape(-1, 784)
    assert len(left) == len(right) <= 10
    distance = np.abs(left[:, None] - right[None]).max(axis=2, initial=0)
    assert ((distance <= 1).sum(axis=0) == 1).all()
    assert ((distance <= 1).sum(axis=1) == 1).all()


def test_rebuild_keeps_the_reference_order(rebuilt: tuple[Split, Split], reference: tuple[Split, Split]) -> None:
    for ours, theirs in zip(rebuilt, reference, strict=True):
        assert np.abs(ours.astype(np.int16) - theirs).max() <= 1


def test_the_first_image_is_the_upright_drawing(rebuilt: tuple[Split, Split], mirrored) -> None:
    """Angelic, character 1, drawer 1: block means of the PNG's ink correlate with it as it stands, not transposed."""
    with zipfile.ZipFile(mirrored("omniglot/images_evaluation.zip")) as archive:
        member = next(n for n in archive.namelist() if "Angelic/character01/" in n and n.endswith("_01.png"))
        ink = 1 - np.asarray(Image.open(io.BytesIO(archive.read(member))), np.float64)
    coarse = ink.reshape(7, 15, 7, 15).mean(axis=(1, 3)).ravel()
    image = rebuilt[0][0].reshape(28, 28).astype(np.float64)
    small = image.reshape(7, 4, 7, 4).mean(axis=(1, 3))
    upright, transposed = (np.corrcoef(coarse, view.ravel())[0, 1] for view in (small, small.T))
    assert upright > 0.98
    assert transposed < 0.9


def test_chardata_is_transposed_on_reading(tmp_path: Path) -> None:
    image = np.zeros((28, 28), np.float32)
    image[3, 20] = 0.5
    columns = np.repeat(image.reshape(-1, 1, order="F"), 2, axis=1)
    scipy.io.savemat(tmp_path / "chardata.mat", {"data": columns, "testdata": columns[:, :1]})
    train, test = omniglot.read_chardata(tmp_path / "chardata.mat")
    assert (train.shape, test.shape) == ((2, 784), (1, 784))
    assert np.argwhere(train[1].reshape(28, 28)).tolist() == [[3, 20]]
    assert train.max() == 128


def test_downsample_is_bicubic_by_its_definition() -> None:
    """Against the textbook formula: the kernel at the pixels' distances, normalised, borders replicated."""

    def cubic(x: float) -> float:
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    weights = np.zeros((28, 105))
    for target in range(28):
        centre = (target + 0.5) * 105 / 28 - 0.5
        for source in range(-10, 115):
            weights[target, min(max(source, 0), 104)] += cubic((source - centre) * 28 / 105)
    weights /= weights.sum(axis=1, keepdims=True)
    ink = np.random.default_rng(0).random((3, 105, 105)) < 0.3
    expected = 255 * np.clip(np.einsum("is,nst,jt->nij", weights, ink, weights), 0, 1)
    assert np.abs(omniglot.downsample(ink).reshape(3, 28, 28) - expected).max() <= 0.5 + 1e-9
    assert (omniglot.downsample(np.ones((1, 105, 105), bool)) == 255).all()


def png(side: int = 105) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (side, side), 1).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"images_background/Latin/character01/0001_01.png": png()}, "1 training and 0 test images"),
        ({"images_background/Latin/character01/0001_01.png": png(28)}, "not a readable zip"),
        ({"images_background/Latin/character01/0001_01.png": b"no picture"}, "not a readable zip"),
        ({"images_background/Klingon/character01/0001_01.png": png()}, "unknown alphabet Klingon"),
        (None, "not a readable zip"),
    ],
)
def test_damaged_zips_are_one_sentence(members: dict[str, bytes] | None, what: str, tmp_path: Path) -> None:
    for part in omniglot.PARTS:
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for name, content in (members or {}).items():
                archive.writestr(name, content)
    if members is None:
        (tmp_path / "images_background.zip").write_bytes(b"PK\3\4 cut")
    with pytest.raises(UserError, match=what):
        omniglot.rebuild(tmp_path)
