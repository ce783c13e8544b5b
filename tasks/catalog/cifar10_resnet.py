"""A thousand CIFAR-10 images, a tenth of them with a wrong label, and a residual network with group norm.

The setting of the paper's Table 4 (*Data Shapley in One Training Run*, arXiv 2406.11011), at a size that a core trains
in half a minute. The images are not embedded: they are read from a folder ``cifar-10-batches-py`` (which torchvision
leaves behind) or ``cifar-10-batches-bin`` (the binary version of https://www.cs.toronto.edu/~kriz/cifar.html) in the
folder that the environment variable :data:`FOLDER` names, or in ``data`` below the present one.
"""

import dataclasses
import os
import pickle
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.architectures import small_resnet
from tasks.catalog import mnist_resnet
from tasks.recipe import Recipe

FOLDER = "CIFAR10_DIR"
"""The environment variable that says where the images lie."""

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
SHAPE = (3, 32, 32)


def dataset() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return all images, float64 [60000, 3, 32, 32] in 0 .. 1, and their classes.

    Raises
    ------
    FileNotFoundError
        If there are none; it says where they were looked for.
    ValueError
        If a file is no such batch.
    """
    return _read(Path(os.environ.get(FOLDER, "data")).resolve())


@cache
def _read(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    for name, read, ending in (("cifar-10-batches-py", _pickled, ""), ("cifar-10-batches-bin", _binary, ".bin")):
        if (folder / name).is_dir():
            pixels, labels = zip(*(read(folder / name / f"{batch}{ending}") for batch in BATCHES), strict=True)
            return np.concatenate(pixels).reshape(-1, *SHAPE) / 255.0, np.concatenate(labels).astype(np.int64)
    raise FileNotFoundError(
        f"task 'cifar10-resnet' needs CIFAR-10, and {str(folder)!r} holds neither cifar-10-batches-py nor "
        f"cifar-10-batches-bin; say where one of them lies by the environment variable {FOLDER}, or take the task "
        "'mnist-resnet', whose images are embedded"
    )


def _binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels, uint8 [n, 3072], and labels, uint8 [n], of a batch: a byte for the label before each image."""
    samples = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if samples.size == 0 or samples.size % (1 + np.prod(SHAPE)):
        raise ValueError(f"{str(path)!r} is no batch of CIFAR-10: {samples.size:,} bytes are not whole images")
    samples = samples.reshape(-1, 1 + int(np.prod(SHAPE)))
    return samples[:, 1:], samples[:, 0]


def _pickled(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels, uint8 [n, 3072], and labels, uint8 [n], of a pickled batch."""
    with path.open("rb") as file:
        batch = _ArraysAlone(file, encoding="bytes").load()
    try:
        pixels, labels = np.asarray(batch[b"data"], dtype=np.uint8), np.asarray(batch[b"labels"], dtype=np.uint8)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no batch of CIFAR-10: it has no data and labels") from error
    if pixels.shape != (len(labels), np.prod(SHAPE)):
        raise ValueError(f"{str(path)!r} is no batch of CIFAR-10: data {pixels.shape}, {len(labels)} labels")
    return pixels, labels


class _ArraysAlone(pickle.Unpickler):
    """Reads NumPy arrays and plain containers, and runs nothing that a file might name."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "encode")

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] not in ("numpy", "_codecs") or name not in self.ALLOWED:
            raise ValueError(f"a batch of CIFAR-10 names nothing but arrays, got {module}.{name}")
        return super().find_class(module, name)


TASK = dataclasses.replace(
    mnist_resnet.TASK,
    dataset=dataset,
    architecture=partial(small_resnet, n_channels=3, width=16),
    recipes={
        "sgd": Recipe("sgd", learning_rate=0.1, batch_size=20, epochs=10),
        "momentum": Recipe("sgd", learning_rate=0.02, batch_size=20, epochs=10, momentum=0.9),
        "adamw": Recipe("adamw", learning_rate=0.003, batch_size=20, epochs=10, weight_decay=0.01),
    },
    n_validation=1000,
    n_test=1000,
    summary="CIFAR-10 images (yours, from disk), 1000 for training, a residual network with group norm",
)
