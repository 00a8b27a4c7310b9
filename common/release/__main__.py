"""`python -m common.release cifar10 --from DIR`: take over the authors' partition, classifiers and diffusion model.

    python -m common.release cifar10 --from Diffence/cifar10 --profile authors

DIR is a data set's folder of the authors' release (doi.org/10.5281/zenodo.13706131), into which their models were copied as
their README says. From it come

    cifar_shuffle.pkl or svhn_shuffle.pkl            who is a member; needed, since their classifiers know no other members
    final-all-models/resnet/<defense>.pth.tar        the classifiers, as the checkpoints that protocol `released` evaluates
    diff_defense/diff_models/half.pt                 the diffusion model

Files that are not there are left out. Weights are read without unpickling code. Profile `authors` is for these files alone,
because its partition is the authors', not ours. Afterwards evaluate with --profile authors --protocol released.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from common.cli import ROOT, make_parser, run_script
from common.errors import check_name


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. `folder` is the repository's root; the data set is the first argument."""
    wants_help = any(word in ("-h", "--help") for word in arguments)
    dataset = "cifar10" if wants_help else "".join(arguments[:1])
    parser = make_parser(folder / dataset, str(__doc__), prog="python -m common.release")
    parser.add_argument("dataset", help="cifar10, cifar100 or svhn; named first")
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="DIR", help="the authors' folder of the data set"
    )
    parser.add_argument(
        "--root", type=Path, help="folder of the official images (default: $DIFFENCE_DATA, else the data set's data/)"
    )
    if wants_help:
        parser.parse_args(arguments)
    from common.data import DATASETS  # imports PyTorch, for which --help does not wait
    from common.defenses import with_options
    from common.release.take_over import take_over
    from common.run import open_run

    check_name("data set (named first)", dataset, DATASETS)
    parsed = parser.parse_args(arguments)
    run = with_options(open_run(folder / dataset, parsed))
    root = parsed.root or (Path(os.environ["DIFFENCE_DATA"]) if os.environ.get("DIFFENCE_DATA") else folder / dataset / "data")
    for line in take_over(run, parsed.source, root):
        print(line)


if __name__ == "__main__":
    run_script(main, ROOT)
