"""`python -m common.serve`: predictions of a protected classifier for a folder of images.

    python -m common.serve protected --images photos --output predictions.csv

The first argument is a folder that `save_pretrained` or `python -m common.protect` wrote. The CSV file gets a line for each
image file, with the columns

    image       its path in the folder of images
    label       the predicted class, counted from 0, as the bare classifier predicts it (not under `average`)
    class       its name, if the protected classifier knows the names
    confidence  the released probability of that class
    error       one sentence, if the file is no image; the other columns are then empty
    logits      with --logits: the released logits, from which all probabilities follow

A killed run continues with the first image that has no line. Where images were added, removed or overwritten since, or the key
is another one, it is refused: move the CSV file away, or name another --output. Image i of the sorted paths is query i, so that
the same folder always gets the same answers.
"""

from collections.abc import Sequence
from pathlib import Path

from common import cli


def main(folder: Path, arguments: Sequence[str]) -> None:
    """The command line. Paths in `arguments` are relative to the current folder."""
    parser = cli.module_parser("serve", __doc__)
    parser.add_argument("protected", type=Path, metavar="FOLDER", help="of the protected classifier")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of image files, and of folders of them")
    parser.add_argument(
        "--output", type=Path, default=Path("predictions.csv"), metavar="FILE", help="CSV (default: predictions.csv)"
    )
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="file with the secret key of 1 to 64 bytes, if there is one"
    )
    parser.add_argument("--logits", action="store_true", help="also write the released logits")
    parser.add_argument("--batch", type=int, default=64, metavar="INT", help="images read at a time (default: 64)")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1 (default: auto)")
    options = parser.parse_args(arguments)
    from common.serve.predictions import predict_folder  # not above: it imports PyTorch, which would make --help slow

    counts = predict_folder(
        options.protected, options.images, options.output, options.key_file, options.logits, options.batch, options.device
    )
    print(f"{options.output}: {counts['predicted']:,} predictions, {counts['bad']:,} files that are no images")


if __name__ == "__main__":
    cli.run_script(main, cli.ROOT)
