"""The data sets by name. To add one, write a loader and one line here (docs/extend.md has an example)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.data.sources import Source, cifar10, cifar100, svhn
from common.data.synthetic import generate


@dataclass(frozen=True)
class Dataset:
    """A data set of 32 x 32 RGB images.

    load: reads the official files under the folder that it is called with, and downloads them where they are missing.
    classes: the number of classes.
    mean, std: of each channel, for pixels in [0, 1].
    """

    load: Callable[[Path], Source]
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Means and standard deviations are those of the released code. The classifier itself normalises, so that everything outside
# it sees pixels in [0, 1].
DATASETS = {
    "cifar10": Dataset(cifar10, 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Dataset(cifar100, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": Dataset(svhn, 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "synthetic": Dataset(generate, 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
