"""The defenses by name. One of your own is a file with `train(run, split)` and one line here (README shows an example)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from common.data.partition import Split
from common.defenses import undefended
from common.errors import check_name
from common.run import Run
from common.targets import options_of, target_classifier


@dataclass(frozen=True)
class NoOptions:
    """A defense without settings of its own."""


@dataclass(frozen=True)
class Defense:
    """`train(run, split)` writes the checkpoint and returns the classifier; `build(run)` is the module it loads into.

    `options` is the dataclass of the config section `defenses.<name>`.
    """

    train: Callable[[Run, Split], nn.Module]
    options: type = NoOptions
    build: Callable[[Run], nn.Module] = target_classifier


DEFENSES = {
    "undefended": Defense(undefended.train),
}


def check_options(run: Run) -> None:
    """Refuse a misspelt defense or option in the config before any work starts."""
    for name in run.config.defenses:
        options_of(run, check_name("defense in the config", name, DEFENSES), DEFENSES[name].options)
