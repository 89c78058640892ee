"""Samples to learn from: a teacher's ladder, or images by name. Held-out parts are apart."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from assay.core.errors import ConfigError
from assay.engines.credit import cohort
from assay.engines.credit import images as images_module
from assay.engines.credit.config import TrainConfig

HELD = 1024
"""Samples of the ladder's validation and test parts."""
LADDER = 4096
LADDER_CLASSES = 10
TEACHER_GAIN = 2.0
LADDER_STREAM = 7


@dataclass(frozen=True, slots=True)
class Part:
    """Inputs [N, I] float32 and labels [N] int64."""

    x_NI: Tensor
    y_N: Tensor

    def __len__(self) -> int:
        return len(self.y_N)

    def first(self, count: int) -> "Part":
        """At most so many of them."""
        return Part(self.x_NI[:count], self.y_N[:count])


@dataclass(frozen=True, slots=True)
class Data:
    """What one run learns from, chooses by and is judged on.

    Attributes:
        train: To learn from.
        val: For curves and choices.
        test: For final values.
        classes: Number of classes.
        image: Channels, height and width, if the inputs are images.
    """

    train: Part
    val: Part
    test: Part
    classes: int
    image: tuple[int, int, int] | None = None

    @property
    def inputs(self) -> int:
        """Numbers of an input."""
        return self.train.x_NI.shape[1]


def load(config: TrainConfig, data_dir: Path | None, seed: int) -> Data:
    """The data of a run.

    Args:
        config: Names it.
        data_dir: The data folder, if there is one.
        seed: Of the teacher and its inputs; images do not depend on it.

    Raises:
        ConfigError: It is not there, or is no set of images and labels.
    """
    if config.data == "ladder":
        return ladder(config, seed)
    return images(config.data, data_dir, config.train_size)


def ladder(config: TrainConfig, seed: int) -> Data:
    """Normal inputs, labelled by a random net of the student's form without norms.

    The teacher's matrices have gain 2; its logits are centred over the samples, so that no class is
    everywhere.
    """
    count = config.train_size or LADDER
    # A stream of its own: the net's, of the same seed, would make its weights of these inputs.
    generator = cohort.generator(seed, LADDER_STREAM)
    width = config.width
    x = torch.randn(count + 2 * HELD, width, generator=generator)
    h = x
    for _ in range(config.depth):
        z = h @ (torch.randn(width, width, generator=generator) * TEACHER_GAIN / width**0.5)
        h = h + torch.lerp(z, torch.tanh(z), config.alpha)
    logits = h @ torch.randn(width, LADDER_CLASSES, generator=generator)
    y = (logits - logits.mean(0)).argmax(1)
    at = (count, count + HELD)
    train, val, test = (
        Part(a, b) for a, b in zip(x.tensor_split(at), y.tensor_split(at), strict=True)
    )
    return Data(train, val, test, LADDER_CLASSES)


@lru_cache(maxsize=2)
def images(name: str, data_dir: Path | None, train_size: int = 0) -> Data:
    """Images as rows, standardised by mean and deviation of each channel over the training part.

    The last tenth of the training samples is the validation part, however many are trained on.

    Args:
        name: As `images.read` takes it.
        data_dir: The data folder, if there is one.
        train_size: Samples to train on, the first; 0 is all.
    """
    arrays = images_module.read(name, data_dir)
    x, y = arrays["x_train"], arrays["y_train"]
    rest = len(x) - len(x) // 10
    if train_size > rest:
        raise ConfigError(
            f"train_size must be at most the {rest} training samples of {name!r}; got {train_size}."
        )
    used = x[: train_size or rest]
    colour = x.ndim == 4
    axes = (0, 1, 2) if colour else None
    mean = used.mean(axes, dtype=np.float64).astype(np.float32)
    scale = (1 / (used.std(axes, dtype=np.float64) + 1e-8)).astype(np.float32)

    def part(images: np.ndarray, labels: np.ndarray) -> Part:
        scaled = (images.astype(np.float32) - mean) * scale
        if colour:
            scaled = scaled.transpose(0, 3, 1, 2)
        rows = np.ascontiguousarray(scaled.reshape(len(images), -1))
        return Part(torch.from_numpy(rows), torch.from_numpy(labels.astype(np.int64)))

    return Data(
        part(used, y[: len(used)]),
        part(x[rest:], y[rest:]),
        part(arrays["x_test"], arrays["y_test"]),
        classes=int(max(y.max(), arrays["y_test"].max())) + 1,
        image=(x.shape[3], x.shape[1], x.shape[2]) if colour else None,
    )


def augmented(x_BI: Tensor, image: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Each image flipped with probability ½ and shifted by up to 4 pixels, edges 0."""
    channels, height, width = image
    count = len(x_BI)
    pictures = x_BI.view(count, channels, height, width)
    flip = torch.rand(count, generator=generator) < 0.5
    pictures = torch.where(flip.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    padded = torch.nn.functional.pad(pictures, (4, 4, 4, 4))
    shift = torch.randint(0, 9, (2, count, 1, 1), generator=generator)
    rows = shift[0] + torch.arange(height).view(1, -1, 1)
    columns = shift[1] + torch.arange(width).view(1, 1, -1)
    chosen = padded.permute(0, 2, 3, 1)[torch.arange(count).view(-1, 1, 1), rows, columns]
    return chosen.permute(0, 3, 1, 2).reshape(count, -1)
