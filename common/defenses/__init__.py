"""The defenses by name. One of your own is a file with `train(run, split)` and one line here (README shows an example)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from common.data.partition import Split
from common.defenses import advreg, dpsgd, hamp, memguard, relaxloss, selena, undefended
from common.errors import check_name
from common.run import Run
from common.targets import options_of, target_classifier


@dataclass(frozen=True)
class NoOptions:
    """A defense without settings of its own."""


@dataclass(frozen=True)
class Defense:
    """`train(run, split)` writes the checkpoint and returns the classifier; `build(run)` is the module it loads into.

    `options` is the dataclass of the config section `defenses.<name>`. A defense of several models may also train them as
    separate jobs: `parts(run)` lists where each lies and under which settings, `train_part(run, split, i)` trains one.
    """

    train: Callable[[Run, Split], nn.Module]
    options: type = NoOptions
    build: Callable[[Run], nn.Module] = target_classifier
    parts: Callable[[Run], list[tuple[Path, dict[str, Any]]]] | None = None
    train_part: Callable[[Run, Split, int], nn.Module] | None = None


DEFENSES = {
    "undefended": Defense(undefended.train),
    "selena": Defense(selena.train, selena.Options, parts=selena.parts, train_part=selena.train_part),
    "advreg": Defense(advreg.train, advreg.Options),
    "hamp": Defense(hamp.train, hamp.Options, hamp.build),
    "relaxloss": Defense(relaxloss.train, relaxloss.Options),
    "dpsgd": Defense(dpsgd.train, dpsgd.Options, dpsgd.build),
    dpsgd.PRIVATE: Defense(
        partial(dpsgd.train, name=dpsgd.PRIVATE), dpsgd.PrivateOptions, partial(dpsgd.build, name=dpsgd.PRIVATE)
    ),
    "memguard": Defense(memguard.train, memguard.Options, memguard.build),
}


def with_options(run: Run) -> Run:
    """The run with every defense's section complete; a misspelt defense or option is refused before any work starts."""
    for name in run.config.defenses:
        check_name("defense in the config", name, DEFENSES)
    sections = {name: asdict(options_of(run, name, defense.options)) for name, defense in DEFENSES.items()}
    return replace(run, config=replace(run.config, defenses=sections))
