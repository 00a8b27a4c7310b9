"""The command lines of the steps from official data to the paper's main table."""

import os
from collections.abc import Sequence
from pathlib import Path

from common.cli import make_parser
from common.commands.options import DEFENSE_NAMES, open_defense_run, parse_options
from common.config import require
from common.errors import UserError


def data_partition(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/data_partition.py`"""
    parser = make_parser(folder, f"Partition {folder.name} into members, reference and non-members.", seed=False, device=False)
    parser.add_argument(
        "--root", type=Path, help=f"folder of the official files (default: $DIFFENCE_DATA, else {folder.name}/data)"
    )
    parsed = parse_options(parser, folder, arguments)
    from common.data import DATASETS
    from common.data.partition import load_split, write_partition
    from common.files import read_json
    from common.run import open_run

    run = open_run(folder, parsed)
    if (run.partition_dir / "manifest.json").is_file():
        load_split(run)  # raises UserError if it is damaged or was made under other settings
        print(f"{run.partition_dir} exists and is intact.")
        return
    elsewhere = Path(os.environ["DIFFENCE_DATA"]) if os.environ.get("DIFFENCE_DATA") else folder / "data"
    counts = write_partition(run, parsed.root or DATASETS[run.dataset].root or elsewhere)
    for reason, files in read_json(run.partition_dir / "manifest.json", "").get("left_out", {}).items():
        if files:
            print(f"left out: {len(files):,} files, such as {files[0]}: {reason}")
    print(f"{run.partition_dir}: " + ", ".join(f"{count:,} {part.replace('_', '-')}" for part, count in counts.items()))


def train_defense(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/train_defense.py --defense NAME`"""
    parser = make_parser(folder, f"Train a classifier on the members of {folder.name} under a defense.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--part", type=int, metavar="INT", help="train this sub-model only (SELENA: 0..K-1)")
    parsed = parse_options(parser, folder, arguments, torchrun=True)
    from common.data.partition import load_split
    from common.defenses import DEFENSES
    from common.training.distributed import is_first, processes
    from common.training.loop import accuracy
    from common.training.targets import PostInference, model_path

    run = open_defense_run(folder, parsed)
    defense = DEFENSES[parsed.defense]
    split = load_split(run)
    if parsed.part is not None:
        if defense.train_part is None:
            raise UserError(f"{parsed.defense} has no sub-models: leave out --part.")
        with processes(run.device):
            defense.train_part(run, split, parsed.part)
        return
    with processes(run.device):
        model = defense.train(run, split)
        if not is_first():
            return
    classifier = model.classifier if isinstance(model, PostInference) else model  # post-inference defenses change no label
    members, non_members = (accuracy(classifier, examples, run.device) for examples in (split.members, split.non_members))
    print(f"{model_path(run, parsed.defense)}: accuracy {members:.4f} on members, {non_members:.4f} on non-members")


def train_shadows(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/train_shadows.py --defense NAME`"""
    parser = make_parser(folder, f"Train shadow models of {folder.name} under a defense, for LiRA and RMIA.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--count", type=int, default=64, help="how many, even, from 4 (default: 64; 16 for a first look)")
    parser.add_argument("--index", type=int, metavar="INT", help="train this one only (from 0), as a job of its own")
    parsed = parse_options(parser, folder, arguments)
    require(parsed.count >= 4 and parsed.count % 2 == 0, f"--count must be an even number from 4, not {parsed.count}.")
    from tqdm import tqdm

    from common.data.partition import load_split
    from common.experiments.shadow_models import shadow_run, train_shadow

    run = open_defense_run(folder, parsed)
    split = load_split(run)
    indices = range(parsed.count) if parsed.index is None else [parsed.index]
    for index in tqdm(indices, desc=f"shadow models, {parsed.defense}", unit="model", disable=None):
        train_shadow(run, split, parsed.defense, index)
    print(f"{shadow_run(run, 0).models_dir.parent}: {len(indices)} shadow models under {parsed.defense}")


def train_ddpm(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/diff_defense/train_ddpm.py`"""
    parser = make_parser(folder, f"Train the diffusion model that re-generates images of {folder.name}.")
    parsed = parse_options(parser, folder, arguments, torchrun=True)
    from common.data.partition import load_split
    from common.diffence import ddpm
    from common.run import open_run
    from common.training.distributed import is_first, processes

    run = open_run(folder, parsed)
    split = load_split(run)
    with processes(run.device):
        ddpm_folder = ddpm.train_ddpm(run, ddpm.training_images(run, split))
        if not is_first():
            return
    picture = ddpm_folder / "reconstructions.png"
    ddpm.save_grid(run, split, picture)
    print(f"{ddpm_folder / 'unet'}: the diffusion model; {picture}: originals above their reconstructions")


def draw_candidates(folder: Path, arguments: Sequence[str]) -> None:
    """`python <data set>/diff_defense/draw_candidates.py`"""
    parser = make_parser(folder, f"Draw the candidates of all evaluated images of {folder.name}, once for every defense.")
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parsed = parse_options(parser, folder, arguments, torchrun=True)
    from common.data.partition import load_split
    from common.diffence.candidates import draw_all
    from common.run import open_run
    from common.training.distributed import is_first, processes

    run = open_run(folder, parsed)
    split = load_split(run)
    with processes(run.device):
        draw_all(run, split, parsed.protocol)
        if not is_first():
            return
    print(f"{run.candidates_dir}: {run.config.diffence.n} candidates of every evaluated image")


def evaluate_mia(folder: Path, arguments: Sequence[str]) -> None:
    """`bash <data set>/evaluate_MIAs/evaluate_mia.sh --defense NAME`"""
    parser = make_parser(folder, f"Attack a classifier of {folder.name}, without and with Diffence.")
    parser.add_argument("--defense", required=True, help=DEFENSE_NAMES)
    parser.add_argument("--scenario", nargs="+", default=["1"], help="one or more of 1, 2, 3 and average (default: 1)")
    parser.add_argument("--n", type=int, help="candidates for each image, N (default: the profile's)")
    parser.add_argument("--t", type=int, help="diffusion step T, 1..1000 (default: the profile's)")
    parser.add_argument("--protocol", default="clean", help="clean or released (default: clean)")
    parser.add_argument("--shadows", type=int, help="also LiRA and RMIA, with this many shadow models (train_shadows.py)")
    parsed = parse_options(parser, folder, arguments)
    from common.experiments.evaluate import evaluate
    from common.report.rows import tables_markdown

    run = open_defense_run(folder, parsed)
    rows = evaluate(run, parsed.defense, parsed.protocol, parsed.scenario)
    print(f"\n{run.dataset}, {run.profile_name}, protocol {parsed.protocol}, seed {run.seed}\n")
    print(tables_markdown(rows))
    print(f"\nText, JSON rows, scores and pictures: {run.results_dir(parsed.protocol)}")
