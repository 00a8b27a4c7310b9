"""The data sets by name. To add one, write a loader and one line here (docs/extend.md has an example).

Data sets that `python -m common.new_dataset` made need no line: they are found by their dataset.yaml.
"""

from common.cli import ROOT
from common.data.faces import celeba, utkface
from common.data.own import own_datasets
from common.data.sources import Dataset, cifar10, cifar100, svhn
from common.data.synthetic import generate

# Means and standard deviations are those of the released code, and for CelebA and UTKFace those of ML-Doctor. The classifier
# itself normalises, so that everything outside it sees pixels in [0, 1].
DATASETS = {
    "cifar10": Dataset(cifar10, 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Dataset(cifar100, 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": Dataset(svhn, 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "celeba": Dataset(celeba, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), size=(218, 178)),
    "utkface": Dataset(utkface, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), size=(200, 200)),
    "synthetic": Dataset(generate, 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    **own_datasets(ROOT),
}
