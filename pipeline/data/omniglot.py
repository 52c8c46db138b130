"""Burda's 28x28 OMNIGLOT: read from `chardata.mat`, or rebuilt from the public release (Lake et al., 105x105 PNGs).

The rebuild follows what comparison with the original showed: MATLAB's antialiased bicubic `imresize` of the ink,
drawers 1-15 of every character for training and 16-20 for testing, with two exceptions. About 100 of the 24,345
training images differ from the original (drawers never released, some Korean ones), and the order is partly a guess.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.catalogue import DATASETS, PIXELS, SIDE
from pipeline.data.formats import corrupt, read_mat
from pipeline.errors import UserError

PARTS = ("images_background", "images_evaluation")
SOURCE_SIDE = 105

# In the order of the original, whose names for the scripts differ from those of the public release.
ALPHABETS = (
    *("Angelic", "Arcadian", "Armenian", "Asomtavruli_(Georgian)", "Atemayar_Qelisayer", "Atlantean", "Aurek-Besh"),
    *("Avesta", "Balinese", "Bengali", "Blackfoot_(Canadian_Aboriginal_Syllabics)", "Braille", "Cyrillic"),
    *("Early_Aramaic", "Syriac_(Estrangelo)", "Anglo-Saxon_Futhorc", "Futurama", "Ge_ez", "Glagolitic", "Grantha"),
    *("Greek", "Gujarati", "Gurmukhi", "Hebrew", "Japanese_(hiragana)"),
    *("Inuktitut_(Canadian_Aboriginal_Syllabics)", "Malay_(Jawi_-_Arabic)", "Kannada", "Japanese_(katakana)", "Keble"),
    *("Korean", "Latin", "Alphabet_of_the_Magi", "Malayalam", "Manipuri", "Mkhedruli_(Georgian)", "Mongolian"),
    *("Burmese_(Myanmar)", "N_Ko", "Ojibwe_(Canadian_Aboriginal_Syllabics)", "Old_Church_Slavonic_(Cyrillic)"),
    *("Oriya", "Sanskrit", "Syriac_(Serto)", "Sylheti", "Tagalog", "Tengwar", "Tibetan", "Tifinagh", "ULOG"),
)

Drawing: TypeAlias = tuple[str, str, int]
"""Alphabet, character (`character07`), drawer (1..20)."""

DRAWERS = frozenset(range(1, 21))
TRAIN_DRAWERS = frozenset(range(1, 16))
TRAIN_DRAWERS_OF = {"Angelic": frozenset({*range(1, 15), 19}), "Glagolitic": TRAIN_DRAWERS - {12} | {16}}
DRAWERS_OF = {"Glagolitic": DRAWERS - {12}}


def read_chardata(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read training and test images, uint8 [n, 784], grey 0..255, upright, in the order of the file.

    Raises: UserError when the file is corrupt.
    """
    arrays = read_mat(path, ("data", "testdata"))
    if any(array.shape[0] != PIXELS for array in arrays.values()):
        raise corrupt(path, f"its columns do not hold {PIXELS} pixels")
    train, test = (_grey(_upright(arrays[key])) for key in ("data", "testdata"))
    return train, test


def rebuild(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Build training and test images, uint8 [n, 784], grey 0..255, from the two zips of the public release.

    Raises: UserError when a zip is missing or corrupt, or does not give 24,345 and 8,070 images.
    """
    images: dict[Drawing, NDArray[np.uint8]] = {}
    for part in PARTS:
        drawings, ink = _read_zip(folder / f"{part}.zip")
        images.update(zip(drawings, downsample(ink), strict=True))
    ordered = sorted(images, key=lambda drawing: (ALPHABETS.index(drawing[0]), *drawing[1:]))
    train, test = (
        np.array([images[drawing] for drawing in ordered if _split(drawing) == split]) for split in ("train", "test")
    )
    info = DATASETS["omniglot"]
    if (len(train), len(test)) != (info.train_images, info.test_images):
        counts = f"{len(train)} training and {len(test)} test images"
        raise corrupt(folder, f"gives {counts} instead of {info.train_images} and {info.test_images}")
    return train, test


def downsample(ink: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Shrink drawings, bool [n, 105, 105], to uint8 [n, 784], ink 255, as MATLAB's `imresize(..., 'bicubic')` does.

    Everything before the one division is an integer that floating point holds exactly: equal bytes on every machine.
    """
    weights = imresize_weights()
    total = np.outer(weights.sum(axis=1), weights.sum(axis=1))
    rows, columns = weights.astype(np.float64), weights.T.astype(np.float32)
    out = np.empty((len(ink), SIDE, SIDE), np.uint8)
    for start in range(0, len(ink), 512):
        block = slice(start, start + 512)
        sums = rows @ (ink[block].astype(np.float32) @ columns)
        out[block] = np.round(np.clip(255 * sums / total, 0, 255))
    return out.reshape(-1, PIXELS)


def imresize_weights() -> NDArray[np.int64]:
    """What each of 105 pixels gives to each of 28: int64 [28, 105], to be divided by the row's sum.

    The cubic kernel (a = -0.5) is stretched by 105/28 and the border replicated. Distances between pixel centres,
    in units of the stretched kernel, are multiples of 1/30, so the kernel times 54,000 is an integer.
    """
    target = np.arange(SIDE)[:, None]
    source = np.arange(-SOURCE_SIDE, 2 * SOURCE_SIDE)[None]
    a = np.abs(8 * source - 30 * target - 11)
    near, far = 3 * a**3 - 150 * a**2 + 54_000, -(a**3) + 150 * a**2 - 7_200 * a + 108_000
    kernel = np.where(a <= 30, near, np.where(a <= 60, far, 0))
    weights = np.zeros((SIDE, SOURCE_SIDE), np.int64)
    np.add.at(weights, (target, np.clip(source, 0, SOURCE_SIDE - 1)), kernel)
    return weights


def _read_zip(path: Path) -> tuple[list[Drawing], NDArray[np.bool_]]:
    """Read every `PART/Alphabet/characterCC/NNNN_DD.png`: who drew what, and the ink, bool [n, 105, 105]."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                name for name in archive.namelist() if name.startswith(f"{path.stem}/") and name.endswith(".png")
            ]
            ink = np.empty((len(members), SOURCE_SIDE, SOURCE_SIDE), np.bool_)
            for index, member in enumerate(members):
                with archive.open(member) as stream, Image.open(stream) as image:
                    # Before its pixels are unpacked: a small file may stand for gigabytes.
                    if image.size != (SOURCE_SIDE, SOURCE_SIDE):
                        raise ValueError(f"{member} has {image.size[0]}x{image.size[1]} pixels")
                    ink[index] = ~np.asarray(image, dtype=np.bool_)
        return [_drawing(member) for member in members], ink
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; run `dvc repro`") from error
    except Exception as error:  # zipfile and Pillow let through whatever the damaged bytes provoke
        raise corrupt(path, f"not a readable zip of 105x105 drawings: {error}") from error


def _drawing(member: str) -> Drawing:
    """Raises: ValueError for a path of another form."""
    _, alphabet, character, file = member.split("/")
    if alphabet not in ALPHABETS:
        raise ValueError(f"unknown alphabet {alphabet}")
    return alphabet, character, int(file[5:7])


def _split(drawing: Drawing) -> str | None:
    alphabet, _, drawer = drawing
    if drawer not in DRAWERS_OF.get(alphabet, DRAWERS):
        return None
    return "train" if drawer in TRAIN_DRAWERS_OF.get(alphabet, TRAIN_DRAWERS) else "test"


def _upright(columns: NDArray[np.floating]) -> NDArray[np.floating]:
    """[784, n], every image column-major -> [n, 784], row-major."""
    return columns.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1).reshape(-1, PIXELS)


def _grey(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = np.round(255 * np.clip(images.astype(np.float64), 0, 1)).astype(np.uint8)
    return grey
