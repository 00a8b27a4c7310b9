"""The options that all command lines share, and the exit codes of scripts."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import UserError

# Threads that spin while they wait slow down everything else on a shared machine. PyTorch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).parents[1]  # of the repository

DEFAULT_PROFILE = {"synthetic": "small"}  # by data set; that of all others is `paper`


def module_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser without options for `python -m common.<module>`, whose --help shows the docstring `doc`."""
    return argparse.ArgumentParser(
        prog=f"python -m common.{module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def make_parser(
    folder: Path, description: str | None, *, seed: bool = True, device: bool = True, profile: str = "", prog: str | None = None
) -> argparse.ArgumentParser:
    """A parser with --profile, --set and, unless they are switched off, --seed and --device.

    `prog` is the command in --help and in messages, by default the name of the script. The name of `folder` is that of the data
    set, whose default profile is the default unless `profile` names another one.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    profile = profile or DEFAULT_PROFILE.get(folder.name, "paper")
    parser.add_argument(
        "--profile",
        default=profile,
        help=f"a file of the data set's configs folder, or a path ending in .yaml (default: {profile})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting, as in --set train.epochs=3"
    )
    if seed:
        parser.add_argument("--seed", type=int, default=0, metavar="INT", help="seed of the run (default: 0)")
    if device:
        parser.add_argument(
            "--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1 (default: auto)"
        )
    return parser


def run_script(main: Callable[[Path, Sequence[str]], None], folder: Path) -> None:
    """Run `main(folder, arguments)` with the arguments of the command line.

    A UserError becomes one sentence on stderr and exit code 2. Ctrl-C becomes exit code 130.
    """
    try:
        main(folder, sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has ended, as in `... | head`: no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
