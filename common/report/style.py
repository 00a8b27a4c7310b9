"""How tables and figures name and draw things: one title, colour, marker and hatch for the same thing everywhere.

Colour says what Diffence does, the marker says which defense. Line styles and hatches repeat the colour, so that a figure can
be read in grey. The colours are those of Okabe and Ito, and of Paul Tol's muted scheme for attacks and for the sides; both are
safe for the colour-blind.
"""

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.files import atomic_write

PHI, PHI_FORMULA = r"$\phi$", r"$\phi = \log(p / (1 - p))$"
COLUMN, PAGE = 3.4, 7.0  # inches: the width of a figure in one column, and across two columns, of a paper

DATASET_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "celeba": "CelebA",
    "utkface": "UTKFace",
    "synthetic": "generated images",
}

DEFENSE_TITLES = {
    "undefended": "Undefended",
    "selena": "SELENA",
    "advreg": "AdvReg",
    "hamp": "HAMP",
    "relaxloss": "RelaxLoss",
    "dpsgd": "DP-SGD",
    "memguard": "MemGuard",
    "dpsgd-private": "DP-SGD, epsilon 8",
    "dpsgd-strong": "DP-SGD, tuned",
}
DIFFENCE_TITLES = {
    None: "without Diffence",
    "1": "Diffence, scenario 1",
    "2": "Diffence, scenario 2",
    "3": "Diffence, scenario 3",
    "average": "Diffence, average",
}
ATTACK_TITLES = {
    "nn": "neural network",
    "loss": "loss",
    "confidence": "confidence",
    "entropy": "entropy",
    "m-entropy": "modified entropy",
    "correctness": "gap attack",
    "lira-online": "LiRA, online",
    "lira-offline": "LiRA, offline",
    "rmia-online": "RMIA, online",
    "rmia-offline": "RMIA, offline",
}
ARCHITECTURE_TITLES = {"resnet18": "ResNet18", "densenet121": "DenseNet121", "vgg16": "VGG16", "vit": "ViT"}

# By scenario: colour, hatch of a bar, style of a line.
DIFFENCE_STYLES: dict[str | None, dict[str, Any]] = {
    None: {"color": "#4d4d4d", "hatch": "", "linestyle": "-"},
    "1": {"color": "#0072b2", "hatch": "////", "linestyle": "--"},
    "2": {"color": "#e69f00", "hatch": "....", "linestyle": "-."},
    "3": {"color": "#009e73", "hatch": "xxxx", "linestyle": ":"},
    "average": {"color": "#cc79a7", "hatch": "++++", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
}
DEFENSE_MARKERS = dict(zip(DEFENSE_TITLES, "osD^vPX*h", strict=True))
MEMBER_STYLES: dict[str, dict[str, Any]] = {
    "members": {"color": "#882255", "alpha": 0.75},
    "non-members": {"color": "#88ccee", "alpha": 0.75, "hatch": "////"},
}
_MUTED = ("#332288", "#117733", "#999933", "#cc6677", "#44aa99", "#ddcc77", "#aa4499", "#882255", "#661100", "#6699cc")
ATTACK_STYLES: dict[str, dict[str, Any]] = {
    name: {"color": color, "linestyle": style}
    for name, color, style in zip(
        ATTACK_TITLES, _MUTED, ("-", "-", "--", "-.", ":", (0, (1, 1)), "-", "--", "-.", ":"), strict=True
    )
}

SETTINGS: Any = {  # font sizes in points, at least 7 in the figures of a paper
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "savefig.dpi": 200,
}
matplotlib.rcParams.update(SETTINGS)


def title_of(titles: dict[Any, str], name: Any) -> str:
    """The title of a name; a defense or data set of a user's own has none and keeps its name."""
    return titles.get(name, str(name))


def marker_of(defense: str) -> str:
    """The marker of a defense; those of a user's own share one."""
    return DEFENSE_MARKERS.get(defense, "h")


def new_figure(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `width` x `height` inches with rows x columns axes, which are returned as a list for each row."""
    figure = Figure(figsize=(width, height), layout="constrained")  # not of pyplot, which would keep it open and need a screen
    return figure, figure.subplots(rows, columns, squeeze=False, **options).tolist()


def save_figure(figure: Figure, *paths: Path) -> None:
    """Write a figure to paths that end in .png or .pdf. The files hold no date: the same figure gives the same bytes."""
    layout = figure.get_layout_engine()
    if layout is not None:  # done once, and not for each file again
        layout.execute(figure)
        figure.set_layout_engine(None)
    for path in paths:
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        atomic_write(path, partial(figure.savefig, format=path.suffix[1:], metadata=metadata))
