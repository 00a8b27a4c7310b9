"""Evaluations of the paper under other settings than the profile's, by name: `all-train-all.sh --experiments NAME`.

Each name stands for one or more variants. A variant is the plan of a data set with further changes of --set, whose rows have a
folder of their own. What it shares with the profile's own plan, such as trained classifiers, is not made twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from common.defenses import DEFENSES, with_options
from common.profiles import load_config
from common.run import Run

ARCHITECTURES = {"densenet121": 32, "vgg16": 64, "vit": 512}  # beside ResNet-18, with their published widths
RESNET18_WIDTH = 64
SHADOWS = 16  # of `lira` and `worst_case` without --shadows; the paper has 128
STEPS = 4  # times as many training steps of the stronger diffusion model


@dataclass(frozen=True)
class Variant:
    """Changes of the settings, and what is evaluated under them.

    defenses: those of the paper's table or figure; of these, the ones that were asked for are evaluated.
    scenarios: those of the table or figure. None = those that were asked for.
    """

    name: str
    overrides: tuple[str, ...]
    defenses: tuple[str, ...] = tuple(DEFENSES)
    scenarios: tuple[str, ...] | None = None


def lira(run: Run) -> list[Variant]:
    """Figure 7: LiRA, and RMIA beside it, in scenario 3. --shadows sets the number of shadow models."""
    overrides = () if run.config.attack.shadows else (f"attack.shadows={SHADOWS}",)
    return [Variant("lira", overrides, scenarios=("3",))]


def architectures(run: Run) -> list[Variant]:
    """Figure 12: the other networks, as narrow as the profile's ResNet-18 is. The paper has no DP-SGD on ViT."""
    variants = []
    for name, published in ARCHITECTURES.items():
        overrides = [f"model.name={name}"]
        if run.config.model.width:
            overrides.append(f"model.width={run.config.model.width * published // RESNET18_WIDTH}")
        if name == "vit":
            overrides.append("train.lr=0.0001")  # Section IV-A
        trainable = tuple(defense for defense in DEFENSES if name != "vit" or not defense.startswith("dpsgd"))
        variants.append(Variant(f"architectures {name}", tuple(overrides), trainable))
    return variants


def table_iv(run: Run) -> list[Variant]:
    """Table IV: few candidates and little noise. The paper has it on CIFAR-100, with classifiers of three other papers."""
    defenses = ("undefended", "selena", "relaxloss", "hamp")
    return [Variant("table_iv", ("diffence.n=10", "diffence.t=50"), defenses, ("3",))]


def stronger(run: Run) -> list[Variant]:
    """Table VII: the average prediction over all candidates of a diffusion model that has seen more images, for more steps."""
    overrides = ("ddpm.name=stronger", "ddpm.reference=true", f"ddpm.steps={STEPS * run.config.ddpm.steps}")
    defenses = ("undefended", "advreg", "dpsgd", "selena", "relaxloss", "hamp")
    return [Variant("stronger", overrides, defenses, ("average",))]


def worst_case(run: Run) -> list[Variant]:
    """Canaries, with either fallback: 100 of them, or 500 where there are many scored points. `data.canaries` changes this.

    It is not among VARIANTS, because these models are attacked by worst_case.py.
    """
    canaries = run.config.data.canaries or (500 if run.config.data.scored >= 2_000 else 100)
    planted = f"data.canaries={canaries}"
    return [Variant("canaries", (planted,)), Variant("canaries reorder", (planted, "diffence.fallback=reorder"))]


VARIANTS: dict[str, Callable[[Run], list[Variant]]] = {
    "lira": lira,
    "architectures": architectures,
    "table_iv": table_iv,
    "stronger": stronger,
}


def run_of(variant: Variant, run: Run) -> Run:
    """The run of a variant. The changes of --set in `run` come first, and those of the variant after them."""
    overrides = (*run.overrides, *variant.overrides)
    config = load_config(run.folder, run.profile, list(overrides))
    return with_options(replace(run, config=config, overrides=overrides))
