"""The commands that make the rows behind a table or a figure."""

from collections.abc import Sequence

from common.cli import ROOT
from common.report.editions import Edition
from common.report.style import DATASET_TITLES, title_of


def profile_for(dataset: str, profile: str) -> str:
    """`profile` where the data set has it, else the paper's."""
    return profile if (ROOT / dataset / "configs" / f"{profile}.yaml").is_file() else "paper"


def evaluation_command(edition: Edition, dataset: str, *options: str, defenses: Sequence[str] = ()) -> str:
    """The command that makes evaluations of a data set."""
    words = [f"bash all-train-all.sh --datasets {dataset} --profile {profile_for(dataset, edition.profile)}"]
    words += [f"--defenses {' '.join(defenses)}"] if defenses else []
    words += [f"--protocol {edition.protocol}"] if edition.protocol != "clean" else []
    return " ".join([*words, *options])


def experiment_command(edition: Edition, dataset: str, experiment: str, *options: str, defenses: Sequence[str] = ()) -> str:
    """The command that makes the rows of a further experiment of a data set."""
    return evaluation_command(edition, dataset, f"--experiments {experiment}", *options, defenses=defenses)


def label_only_command(edition: Edition, dataset: str, defenses: Sequence[str], *options: str) -> str:
    """The command that attacks some defenses by their labels alone, with the numbers of the committed rows."""
    script = f"python {dataset}/evaluate_MIAs/label_only.py --defense $d --profile {profile_for(dataset, edition.profile)}"
    protocol = ["--protocol", edition.protocol] if edition.protocol != "clean" else []
    words = " ".join([script, *protocol, "--count 50 --steps 10", *options])
    return f"for d in {' '.join(defenses)}; do {words}; done"


def absent_notes(edition: Edition) -> list[str]:
    """A sentence for each of the paper's data sets without rows."""
    return [
        f"{title_of(DATASET_TITLES, dataset)} has no rows yet; `{evaluation_command(edition, dataset)}` makes them."
        for dataset in edition.absent_datasets
    ]
