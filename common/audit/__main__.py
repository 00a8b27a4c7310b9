"""`python -m common.audit`: audit any classifier for membership inference, from its saved outputs.

    np.savez("m.npz", logits=..., labels=...)     # outputs on members: logits [n, C], true labels int [n]
    np.savez("n.npz", logits=..., labels=...)     # outputs on non-members, which were never used in training
    python -m common.audit --members m.npz --non-members n.npz --out audit

`probabilities` [n, C] may replace `logits`. Predictions whose probabilities are exactly 0 for all classes but one then tie.
`--shadows s.npz` adds LiRA and RMIA. The file holds `logits` or `probabilities` [M, members + non-members, C] of M >= 2 shadow
models on the points of both files, members first, and `keep` bool [M, members + non-members], which is True where a model was
trained on a point. For each kind of model that it uses (trained on a point or not), LiRA needs two models of some point. The
audited model must not be among the shadow models. Nothing is unpickled.

Members and non-members are split at random into known and scored points. The NN attack trains on the known points, and
thresholds are fitted on them. All reported numbers are about the scored points. The folder --out gets audit.html (one file that
needs no network), audit.json, roc.png and phi.png.
"""

from collections.abc import Sequence
from pathlib import Path

from common import cli


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. Paths in `arguments` are relative to the current folder."""
    parser = cli.module_parser("audit", __doc__)
    parser.add_argument("--members", type=Path, required=True, metavar="FILE", help=".npz of the model's outputs on members")
    parser.add_argument("--non-members", type=Path, required=True, metavar="FILE", help=".npz of its outputs on non-members")
    parser.add_argument("--shadows", type=Path, metavar="FILE", help=".npz of shadow models' outputs on both, and `keep`")
    parser.add_argument(
        "--out", type=Path, default=Path("audit"), metavar="FOLDER", help="folder of the report (default: audit)"
    )
    parser.add_argument("--known-fraction", type=float, default=0.5, metavar="X", help="share of known points (default: 0.5)")
    parser.add_argument("--fpr", type=float, default=0.001, metavar="X", help="FPR at which TPR is reported (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="seed of split and NN attack (default: 0)")
    options = parser.parse_args(arguments)
    from common.audit.audit import audit  # not above: it imports PyTorch, which would make --help slow
    from common.audit.page import attack_table

    files = {name: getattr(options, name) for name in ("members", "non_members", "shadows") if getattr(options, name)}
    row = audit(files, options.known_fraction, options.fpr, options.seed, options.out)
    print(attack_table(row).to_markdown(index=False, disable_numparse=True))
    print("", *row["summary"], *(f"Warning: {sentence}" for sentence in row["warnings"]), sep="\n")
    print(f"\n{options.out / 'audit.html'} has curves, histograms and the most exposed records; audit.json all numbers.")


if __name__ == "__main__":
    cli.run_script(main, cli.ROOT)
