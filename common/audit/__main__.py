"""`python -m common.audit`: audit anybody's classifier for membership inference, from its saved outputs alone.

    np.savez("m.npz", logits=..., labels=...)     # the model's answers on members: logits [n, C], true labels int [n]
    np.savez("n.npz", logits=..., labels=...)     # and on non-members, never seen in training
    python -m common.audit --members m.npz --non-members n.npz --out audit

`probabilities` [n, C] do in place of `logits`, but those with all classes but one at exactly 0 tie. With `--shadows s.npz`
LiRA and RMIA join: `logits` or `probabilities` [M, members + non-members, C] of M >= 2 shadow models on both files' points,
members first, and `keep` bool [M, members + non-members]: which of them each model was trained on. LiRA needs two models of
each kind that it uses. The audited model must not be among them. Nothing is unpickled.

Each side is split at random into known points, on which the NN attack trains and thresholds are fitted, and scored points,
which every number is about. Written to --out: audit.html (one file, no network), audit.json, roc.png and phi.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common import cli


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. Paths are relative to the folder that it is called in."""
    parser = argparse.ArgumentParser(
        prog="python -m common.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--members", type=Path, required=True, metavar="FILE", help=".npz of the model's answers on members")
    parser.add_argument("--non-members", type=Path, required=True, metavar="FILE", help=".npz of its answers on non-members")
    parser.add_argument("--shadows", type=Path, metavar="FILE", help=".npz of shadow models' answers on both, and `keep`")
    parser.add_argument(
        "--out", type=Path, default=Path("audit"), metavar="FOLDER", help="folder of the report (default: audit)"
    )
    parser.add_argument("--known-fraction", type=float, default=0.5, metavar="X", help="share of known points (default: 0.5)")
    parser.add_argument("--fpr", type=float, default=0.001, metavar="X", help="FPR at which TPR is reported (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="seed of split and NN attack (default: 0)")
    options = parser.parse_args(arguments)
    from common.audit.audit import audit  # imports PyTorch, for which --help does not wait
    from common.audit.page import table

    files = {name: getattr(options, name) for name in ("members", "non_members", "shadows") if getattr(options, name)}
    row = audit(files, options.known_fraction, options.fpr, options.seed, options.out)
    print(table(row).to_markdown(index=False, disable_numparse=True))
    print("", *row["summary"], *(f"Warning: {sentence}" for sentence in row["warnings"]), sep="\n")
    print(f"\n{options.out / 'audit.html'} has curves, histograms and the most exposed records; audit.json all numbers.")


if __name__ == "__main__":
    cli.run_script(main, cli.ROOT)
