"""Every setting of an experiment, as frozen dataclasses whose defaults are the paper's values.

`common/profiles.py` reads them from YAML files. A value out of range raises UserError, which names the setting. This module
does not import PyTorch, because `--help` imports it.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import UserError
from common.ranges import BELOW_1, BETWEEN_0_AND_1, NOT_NEGATIVE, POSITIVE, at_least, check_range, within

# Command lines check these names before they import anything slow.
PROTOCOLS = ("clean", "released")
SCENARIOS = ("1", "2", "3", "average")
Fallback = Literal["original", "reorder"]

# Settings that did not exist when the first rows and checkpoints were made (`Config.as_dict`).
NEWER = (
    *(("data", "image_size"), ("data", "canaries")),
    *(("ddpm", "name"), ("ddpm", "reference"), ("ddpm", "min_timestep")),
    ("diffence", "fallback"),
)


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with `sentence` unless `condition` is true."""
    if not condition:
        raise UserError(sentence)


@dataclass(frozen=True)
class Data:
    """Numbers of images (paper Section IV-A). `fit`, `known` and `scored` are each a number of members and of non-members."""

    members: int = 25_000  # the target's training set
    reference: int = 25_000  # further training images, on which no target is trained (for AdvReg and MemGuard)
    non_members: int = 10_000  # images of the official test set
    fit: int = 1_000  # the defender's points, on which scenarios 1 and 2 fit their interval
    known: int = 1_000  # the attacker's points: thresholds and the NN attack are fitted on them
    scored: int = 2_000  # the points whose membership the attacker infers
    seed: int = 0  # of the partition, which does not depend on the seed of a run (--seed)
    image_size: int = 0  # image files are cut and resized to this many pixels a side; 0 = as they are
    canaries: int = 0  # images with a wrong label in the pool of the shadow models, for evaluate_MIAs/worst_case.py

    def __post_init__(self) -> None:
        check_range(self, "data", at_least(1), "members", "non_members", "fit", "known", "scored")
        check_range(self, "data", NOT_NEGATIVE, "reference")
        require(
            self.image_size == 0 or self.image_size >= 8,
            f"data.image_size must be at least 8 pixels, or 0 for images as they are, not {self.image_size}.",
        )
        require(
            0 <= self.canaries <= self.scored,
            f"data.canaries must lie in 0..data.scored = {self.scored}, not {self.canaries}: canaries and as many random "
            "images are drawn from the scored points of both sides.",
        )
        total = self.fit + self.known + self.scored
        for side in ("members", "non_members"):
            require(
                total <= getattr(self, side),
                f"data.fit + data.known + data.scored = {total} exceed data.{side} = {getattr(self, side)}: lower them.",
            )


@dataclass(frozen=True)
class Model:
    """The target classifier (paper Section IV-A, Appendix A-A)."""

    name: str = "resnet18"  # resnet18, densenet121, vgg16, vit
    width: int = 0  # 0 = as published; a smaller one saves time
    depth: int = 0  # 0 = as published


@dataclass(frozen=True)
class Train:
    """The training of every classifier (paper Section IV-A): Adam without schedule and augmentation."""

    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3  # the paper uses 1e-4 for ViT
    weight_decay: float = 1e-6
    amsgrad: bool = True  # set in the released code, not mentioned in the paper
    best_on_test: bool = True  # also save the epoch with the best accuracy on the non-members, for protocol `released`
    bf16: bool = False  # bfloat16 autocast, if the device computes in it natively (common/training/loop.py, `autocast`)

    def __post_init__(self) -> None:
        check_range(self, "train", at_least(1), "epochs")
        check_range(self, "train", at_least(2), "batch_size")
        check_range(self, "train", POSITIVE, "lr")
        check_range(self, "train", NOT_NEGATIVE, "weight_decay")


@dataclass(frozen=True)
class DDPM:
    """The diffusion model and its training on the members' images (paper Section IV-A: the defaults of Ho et al.)."""

    name: str = ""  # a folder of its own, so that another diffusion model can lie beside the profile's
    reference: bool = False  # also train on the reference images (paper Appendix A-C: a stronger diffusion model)
    channels: list[int] = field(default_factory=lambda: [128, 256, 256, 256])
    layers: int = 2  # residual blocks in each level
    attention: list[int] = field(default_factory=lambda: [1])  # levels with self-attention (level 1 works at 16 x 16)
    groups: int = 32  # of GroupNorm
    dropout: float = 0.1
    steps: int = 800_000
    batch_size: int = 128
    lr: float = 2e-4
    warmup: int = 5_000  # steps of linear learning-rate warm-up
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    flip: bool = True  # random horizontal flips; wrong for digits
    min_timestep: int = 1  # the first timestep that is trained; Diffence with one evaluation uses diffence.t alone
    max_timestep: int = 1000  # timesteps min_timestep..max_timestep are trained; Diffence uses none after diffence.t
    save_every: int = 1000  # steps between lines of the log, at which a checkpoint may be written
    bf16: bool = False  # as train.bf16, for training and reconstruction

    def __post_init__(self) -> None:
        check_range(self, "ddpm", at_least(1), "steps", "batch_size", "layers", "groups", "save_every")
        check_range(self, "ddpm", POSITIVE, "lr", "grad_clip")
        check_range(self, "ddpm", NOT_NEGATIVE, "warmup")
        check_range(self, "ddpm", BELOW_1, "dropout", "ema_decay")
        check_range(self, "ddpm", within(1, 1000), "max_timestep")
        require(
            re.fullmatch(r"[\w-]*", self.name) is not None and self.name != "unet",
            f"ddpm.name is the name of a folder, of letters, digits, _ and -, and not unet; '{self.name}' is none.",
        )
        require(
            1 <= self.min_timestep <= self.max_timestep,
            f"ddpm.min_timestep must lie in 1..ddpm.max_timestep = {self.max_timestep}, not {self.min_timestep}.",
        )
        levels = len(self.channels)
        require(levels > 0, "ddpm.channels must have the channels of one level at least.")
        for level in self.attention:
            require(0 <= level < levels, f"ddpm.attention names levels 0..{levels - 1} of ddpm.channels; {level} is none.")
        for width in self.channels:
            require(
                width % self.groups == 0,
                f"ddpm.channels must be multiples of ddpm.groups = {self.groups}; {width} is not.",
            )


@dataclass(frozen=True)
class Diffence:
    """Diffence (paper Section III-B): each image has N candidates, which are noised to step T and denoised."""

    n: int = 30  # candidates for each image, N
    t: int = 160  # diffusion step T, 1..1000
    steps: int = 1  # network evaluations from T to 0 (DDIM)
    forward: Literal["paper", "released"] = "paper"  # Eq. 3, or the reciprocal coefficients of the released code
    grid: int = 20  # scenario 1 searches all intervals between two of grid + 1 points
    js_bins: int = 100  # histogram bins of the Jensen-Shannon divergence
    # What is released where no candidate keeps the label: the original prediction, or a candidate's confidences in its order.
    fallback: Fallback = "original"
    batch: int = 256  # images in one network call
    stable: bool = False  # for serving: noise from a keyed hash of the image, so that repeated queries get one answer

    def __post_init__(self) -> None:
        check_range(self, "diffence", at_least(1), "grid", "js_bins", "batch")
        require(self.n > 0, f"diffence.n (the number of candidates N) must be at least 1, not {self.n}.")
        require(1 <= self.t <= 1000, f"diffence.t (the diffusion step T) must lie in 1..1000, not {self.t}.")
        require(
            1 <= self.steps <= self.t,
            f"diffence.steps must lie in 1..diffence.t = {self.t}, not {self.steps}.",
        )


@dataclass(frozen=True)
class Attack:
    """The attacks (paper Section IV-A, Appendix A-E)."""

    nn_epochs: int = 200
    nn_lr: float = 5e-4
    nn_batch_size: int = 64  # of members and of non-members each
    nn_held_out: float = 0.2  # share of the known points on which protocol `clean` selects epoch and threshold
    fpr: float = 0.001  # TPR is reported at this FPR, TNR at this FNR
    shadows: int = 0  # shadow models of LiRA and RMIA, an even number from 4; 0 = without these attacks
    mirror: bool = False  # LiRA and RMIA also query the mirrored image
    lira_variance: Literal["auto", "example", "global"] = "auto"  # auto = global below 64 IN and OUT models
    lira_tail: Literal["one-sided", "reference"] = "one-sided"  # offline: as in the paper, or two-sided as in its code
    rmia_gamma: float = 2.0
    rmia_a: float = 0.3  # offline: P_in = a P_out + 1 - a; the authors use .3 for CIFAR-10 and .6 for CIFAR-100
    per_class: bool = False  # also fit a threshold for each class (Song & Mittal); overfits if known points are few

    def __post_init__(self) -> None:
        check_range(self, "attack", POSITIVE, "nn_epochs", "nn_batch_size", "nn_lr", "rmia_gamma")
        check_range(self, "attack", BETWEEN_0_AND_1, "nn_held_out", "fpr")
        check_range(self, "attack", within(0, 1), "rmia_a")
        is_even_from_4 = self.shadows >= 4 and self.shadows % 2 == 0
        require(
            self.shadows == 0 or is_even_from_4,
            f"attack.shadows must be an even number from 4, or 0 for none, not {self.shadows}.",
        )


@dataclass(frozen=True)
class Config:
    """All settings. `defenses` has a section for each defense, which `read_options` (common/profiles.py) checks."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    ddpm: DDPM = field(default_factory=DDPM)
    diffence: Diffence = field(default_factory=Diffence)
    attack: Attack = field(default_factory=Attack)
    defenses: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self.diffence.t <= self.ddpm.max_timestep,
            f"diffence.t = {self.diffence.t} exceeds ddpm.max_timestep = {self.ddpm.max_timestep}: the diffusion model "
            "is not trained there; raise ddpm.max_timestep and retrain it, or lower diffence.t.",
        )
        first = round(self.diffence.t / self.diffence.steps)  # the smallest timestep of a DDIM pass (`ddim_steps`)
        require(
            first >= self.ddpm.min_timestep,
            f"diffence.t = {self.diffence.t} with diffence.steps = {self.diffence.steps} goes down to timestep {first}, and "
            f"the diffusion model is trained from ddpm.min_timestep = {self.ddpm.min_timestep} on: lower it and retrain it.",
        )

    def as_dict(self) -> dict[str, Any]:
        """A nested dict of plain values, for checkpoints and rows.

        The settings of NEWER are in it only where they differ from their defaults, so that what was made before they existed
        counts as the same.
        """
        content, defaults = dataclasses.asdict(self), dataclasses.asdict(Config())
        for section, key in NEWER:
            if content[section][key] == defaults[section][key]:
                del content[section][key]
        return content
