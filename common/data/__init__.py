"""The data sets: what each is, and where its images come from. A data set of your own is one line here (see README)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.data.sources import Source, cifar10, cifar100, svhn
from common.data.synthetic import generate


@dataclass(frozen=True)
class Dataset:
    """Facts of a data set. `load(root)` finds (or fetches) the official files under `root`; mean and std are per channel."""

    load: Callable[[Path], Source]
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Normalisation as in the released code; it happens inside the classifier, so that everything outside sees [0, 1].
DATASETS = {
    "cifar10": Dataset(cifar10, 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Dataset(cifar100, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": Dataset(svhn, 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "synthetic": Dataset(generate, 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
