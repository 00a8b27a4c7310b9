"""`python <data set>/train_defense.py --defense NAME`: train a target classifier under a defense (paper Section IV-A)."""

from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.config import load_config
from common.errors import check_name


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line of `train_defense.py`."""
    parser = cli.parser(folder, f"Train a classifier on the members of {folder.name} under a defense.")
    parser.add_argument("--defense", required=True, help="undefended, selena, advreg, hamp, relaxloss, dpsgd, memguard")
    parsed = parser.parse_args(arguments)
    load_config(folder, parsed.profile, parsed.set)  # a wrong setting is refused before torch is imported
    from common.data.partition import load_split
    from common.defenses import DEFENSES, check_options
    from common.run import open_run
    from common.targets import model_path
    from common.training import accuracy

    check_name("defense", parsed.defense, DEFENSES)
    run = open_run(folder, parsed)
    check_options(run)
    split = load_split(run)
    model = DEFENSES[parsed.defense].train(run, split)
    members, others = (accuracy(model, part, run.device) for part in (split.members, split.non_members))
    print(f"{model_path(run, parsed.defense)}: accuracy {members:.4f} on members, {others:.4f} on non-members")
