"""The defenses by name. To add one, write a file with `train(run, split)` and one line here (docs/extend.md has an example)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from common.data.partition import Split
from common.defenses import advreg, dpsgd, dpsgd_strong, hamp, memguard, relaxloss, selena, undefended
from common.errors import check_name
from common.run import Run
from common.training import options_of, target_classifier
from common.training.targets import PostInference, load_target


@dataclass(frozen=True)
class NoOptions:
    """A defense without settings of its own."""


@dataclass(frozen=True)
class Defense:
    """How a defense is trained and loaded.

    train: trains the defense, writes the checkpoint and returns the model.
    options: the dataclass of the config section `defenses.<name>`.
    build: returns the module that the checkpoint is loaded into.
    needs: the names of the defenses that must be trained before this one.
    parts, train_part: for a defense of several models that can be trained as separate jobs. `parts(run)` lists the path and the
        settings of each model, and `train_part(run, split, i)` trains model i.
    """

    train: Callable[[Run, Split], nn.Module]
    options: type = NoOptions
    build: Callable[[Run], nn.Module] = target_classifier
    needs: tuple[str, ...] = ()
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
    dpsgd_strong.NAME: Defense(dpsgd_strong.train, dpsgd_strong.Options, dpsgd_strong.build),
    "memguard": Defense(memguard.train, memguard.Options, memguard.build, needs=("undefended",)),
}


@dataclass(frozen=True)
class DefendedModel:
    """A trained defense."""

    classifier: nn.Module  # images [B, 3, H, W] in [0, 1] -> logits [B, C]
    post_inference: PostInference | None  # applied to the predictions that are released; None = the defense has no such part


def load_defended_model(run: Run, defense: str, protocol: str) -> DefendedModel:
    """Load a trained defense with the weights that `protocol` evaluates.

    Raises UserError where its checkpoint is missing, damaged, or made under other settings. The message names the command that
    trains it.
    """
    model = load_target(run, defense, protocol, DEFENSES[defense].build(run))
    return DefendedModel(model.classifier, model) if isinstance(model, PostInference) else DefendedModel(model, None)


def with_options(run: Run) -> Run:
    """The run with every option of every defense in its config, defaults included.

    Raises UserError for an unknown defense, an unknown option, or a value out of range.
    """
    for name in run.config.defenses:
        check_name("defense in the config", name, DEFENSES)
    sections = {name: asdict(options_of(run, name, defense.options)) for name, defense in DEFENSES.items()}
    return replace(run, config=replace(run.config, defenses=sections))
