"""`python -m common.protect`: what Diffence would do for a classifier of your own, and the protected classifier itself.

    python -m common.protect --classifier model.pt2 --unet ddpm --t 160 \\
        --members photos/members --non-members photos/others --out protected

--members and --non-members are folders with one folder of images for each class: images that the classifier was trained on, and
others from the same source that it never saw. The folder that is first in the alphabet is output 0, and so on. Part of each
side, drawn at random, is for fitting the interval of scenario 1 or 2; the rest is audited, without Diffence and with it.
Scenarios 3 and average fit nothing. By default their audit leaves out the same part, so that all scenarios are audited on the
same images; --fit 0 audits that part too.

The folder --out gets the protected classifier (serve it with `python -m common.serve`), audit.html with both audits in two
columns, audit.json, and the logits of all images and candidates, so that a killed run continues where it was.

--classifier is a file of torch.export (.pt2) or TorchScript, or module:function, a function that returns a torch.nn.Module.
These run code, so name only what you trust. --unet is the diffusion model: a folder that diffusers wrote, a name on the Hugging
Face hub, a checkpoint of pytorch-ddpm or guided-diffusion, or module:function.
"""

from collections.abc import Sequence
from pathlib import Path

from common import cli
from common.config import SCENARIOS
from common.errors import check_name


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. Paths in `arguments` are relative to the current folder."""
    parser = cli.module_parser("protect", __doc__)
    parser.add_argument("--classifier", required=True, metavar="SOURCE", help=".pt2, TorchScript, or module:function")
    parser.add_argument("--unet", required=True, metavar="SOURCE", help="the diffusion model")
    parser.add_argument("--members", type=Path, required=True, metavar="FOLDER", help="a folder of images for each class")
    parser.add_argument(
        "--non-members", type=Path, required=True, metavar="FOLDER", help="the same, of images never trained on"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("protected"), metavar="FOLDER", help="folder of what is written (default: protected)"
    )
    parser.add_argument("--scenario", default="1", help="1, 2, 3 or average (default: 1)")
    parser.add_argument("--t", type=int, default=160, metavar="INT", help="diffusion step T (default: 160)")
    parser.add_argument("--n", type=int, default=30, metavar="INT", help="candidates for each image, N (default: 30)")
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="INT", help="H = W, or H W, of the images (default: the first one's)"
    )
    parser.add_argument(
        "--mean", type=float, nargs=3, metavar="X", help="of each channel, if the classifier does not normalise"
    )
    parser.add_argument("--std", type=float, nargs=3, metavar="X", help="the same: the standard deviations")
    parser.add_argument("--unet-size", type=int, metavar="INT", help="H = W of the diffusion model, if its files do not say")
    parser.add_argument(
        "--fit",
        type=int,
        metavar="INT",
        help="images a side that fit the interval and are not audited (default: a third, at most 1,000)",
    )
    parser.add_argument("--audit", type=int, metavar="INT", help="images a side to audit (default: the rest, at most 3,000)")
    parser.add_argument("--known-fraction", type=float, default=0.5, metavar="X", help="as in common.audit (default: 0.5)")
    parser.add_argument("--fpr", type=float, default=0.001, metavar="X", help="as in common.audit (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT", help="of the audit: its images and noise (default: 0)")
    parser.add_argument("--batch", type=int, default=256, metavar="INT", help="candidates computed together (default: 256)")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1 (default: auto)")
    options = parser.parse_args(arguments)
    check_name("scenario", options.scenario, SCENARIOS)
    from common.audit.page import comparison_table  # not above: it imports PyTorch, which would make --help slow
    from common.protect.before_after import protect_and_audit

    rows, sentences = protect_and_audit(options)
    print(comparison_table(rows).to_markdown(index=False, disable_numparse=True))
    print("", *sentences, sep="\n")
    print(f"\n{options.out / 'audit.html'} has both audits; serve with: python -m common.serve {options.out} --images FOLDER")


if __name__ == "__main__":
    cli.run_script(main, cli.ROOT)
