"""The options of a data set's scripts, checked before anything slow is imported."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import PROTOCOLS, SCENARIOS, require
from common.errors import check_name
from common.profiles import load_config

if TYPE_CHECKING:
    from common.run import Run

# The text of --help. It is not made from common.defenses.DEFENSES, which imports PyTorch.
DEFENSE_NAMES = "undefended, selena, advreg, hamp, relaxloss, dpsgd, dpsgd-private, dpsgd-strong, memguard, or your own"

# Options that stand for a setting: `--n 10` is `--set diffence.n=10`.
SETTINGS = {"n": "diffence.n", "t": "diffence.t", "shadows": "attack.shadows"}


def parse_options(
    parser: ArgumentParser,
    folder: Path,
    arguments: Sequence[str],
    *,
    positive: Sequence[str] = (),
    torchrun: bool = False,
) -> Namespace:
    """Parse the options, and raise UserError for wrong settings, scenarios and protocols before anything slow is imported.

    The options named in `positive` must be at least 1. torchrun: whether several processes may run the command together.
    """
    parsed = parser.parse_args(arguments)
    values = vars(parsed)
    parsed.set += [f"{key}={values[option]}" for option, key in SETTINGS.items() if values.get(option) is not None]
    load_config(folder, parsed.profile, parsed.set)
    scenarios = values.get("scenario")
    for scenario in [scenarios] if isinstance(scenarios, str) else scenarios or []:
        check_name("scenario", scenario, SCENARIOS)
    if "protocol" in values:
        check_name("protocol", parsed.protocol, PROTOCOLS)
    require(
        torchrun or "TORCHELASTIC_RUN_ID" not in os.environ,
        "torchrun is for train_ddpm.py, draw_candidates.py and train_defense.py: run this command without it.",
    )
    for option in positive:
        require(values[option] > 0, f"--{option} must be at least 1, not {values[option]}.")
    return parsed


def open_defense_run(folder: Path, parsed: Namespace) -> Run:
    """The run for the parsed options of a command with --defense, of one name or several.

    Raises UserError for an unknown defense or wrong settings.
    """
    from common.defenses import DEFENSES, with_options
    from common.run import open_run

    for defense in [parsed.defense] if isinstance(parsed.defense, str) else parsed.defense:
        check_name("defense", defense, DEFENSES)
    return with_options(open_run(folder, parsed))
