"""The command lines of every data set: help at once, and one clear sentence with exit code 2 for what is wrong."""

from pathlib import Path

import pytest
from conftest import DATASETS, Call, refusal, run_script

from common.commands import draw_candidates, evaluate_mia, train_ddpm, train_defense

SCRIPTS = (
    "data_partition.py",
    "train_defense.py",
    "train_shadows.py",
    "diff_defense/train_ddpm.py",
    "diff_defense/draw_candidates.py",
    "evaluate_MIAs/evaluate_mia.py",
    "evaluate_MIAs/attack_diffence.py",
    "evaluate_MIAs/label_only.py",
    "evaluate_MIAs/intervals.py",
    "evaluate_MIAs/n_and_t.py",
    "evaluate_MIAs/frontier.py",
    "evaluate_MIAs/overhead.py",
    "evaluate_MIAs/training_cost.py",
    "evaluate_MIAs/worst_case.py",
)
EVALUATE = "synthetic/evaluate_MIAs/evaluate_mia.sh"


SLOW = {"torch", "torchvision", "diffusers", "opacus", "pandas", "matplotlib", "sklearn"}


def help_of(workspace: Path, script: str, *options: str) -> str:
    """What `--help` prints, in single spaces, after a look at what it cost."""
    answer = run_script(workspace, script, "--help", options=("-X", "importtime", *options))
    assert answer.code == 0
    assert answer.cpu < 1
    assert answer.out.startswith("usage: ")
    imported = {line.split("|")[-1].strip() for line in answer.err.splitlines() if line.startswith("import time:")}
    assert "common.cli" in imported
    assert not SLOW & imported
    return " ".join(answer.out.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once_and_imports_no_torch(workspace: Path, script: str) -> None:
    """The scripts of the other data sets are the same files, which another test shows."""
    text = help_of(workspace, f"synthetic/{script}")
    assert "--profile" in text
    assert ("--defense" in text) == (not script.startswith(("data_partition", "diff_defense/")))
    assert "(default: small)" in text


def test_the_default_profile_of_the_papers_data_sets_is_the_papers(workspace: Path) -> None:
    assert "(default: paper)" in help_of(workspace, "cifar100/data_partition.py")


MODULES = ("common.audit", "common.grid", "common.report", "common.launch", "common.new_dataset", "common.reproduce")


@pytest.mark.parametrize("module", MODULES)
def test_help_of_the_modules_answers_at_once(workspace: Path, module: str) -> None:
    help_of(workspace, module, "-m")


def test_the_folders_hold_the_same_scripts(workspace: Path) -> None:
    """A data set's folder holds no logic: its scripts are those of the others, byte for byte."""
    files = {
        name: {
            path.relative_to(workspace / name): path.read_bytes()
            for path in (workspace / name).rglob("*")
            if path.suffix in (".py", ".sh")
        }
        for name in DATASETS
    }
    assert {path.as_posix() for path in files["synthetic"]} == {*SCRIPTS, "evaluate_MIAs/evaluate_mia.sh"}
    for name in DATASETS:
        assert files[name] == files["synthetic"]


def test_help_of_the_shell_script_from_anywhere(workspace: Path, tmp_path: Path) -> None:
    answer = run_script(tmp_path, str(workspace / EVALUATE), "--help")
    assert (answer.code, answer.err) == (0, "")
    for option in ("--scenario", "--n N", "--t T", "--profile", "--protocol", "--seed", "--device", "--set"):
        assert option in answer.out


# Refused before anything slow is imported, in a process of its own


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        (EVALUATE, ["--scenario", "4"], ["unknown scenario '4'", "Known: 1, 2, 3, average"]),
        (EVALUATE, ["--scenario", "1", "avarage"], ["unknown scenario 'avarage'", "Did you mean 'average'?"]),
        (EVALUATE, ["--protocol", "relaesed"], ["unknown protocol 'relaesed'", "Did you mean 'released'?", "clean, released"]),
        (EVALUATE, ["--n", "0"], ["diffence.n (the number of candidates N) must be at least 1, not 0"]),
        (EVALUATE, ["--t", "1001"], ["diffence.t (the diffusion step T) must lie in 1..1000, not 1001"]),
        (EVALUATE, ["--t", "0"], ["1..1000, not 0"]),
        (EVALUATE, ["--t", "200"], ["diffence.t = 200 exceeds ddpm.max_timestep = 160"]),
        (EVALUATE, ["--profile", "papr"], ["unknown profile of synthetic 'papr'", "paper, small"]),
        ("synthetic/train_defense.py", ["--set", "train.epoch=1"], ["train.epoch", "Did you mean", "'epochs'"]),
    ],
)
def test_wrong_arguments_are_one_sentence(workspace: Path, script: str, arguments: list[str], words: list[str]) -> None:
    answer = run_script(workspace, script, "--defense", "undefended", *arguments)
    sentence = refusal(answer)
    assert answer.out == ""
    assert answer.cpu < 2
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("arguments", [[], ["--defense", "undefended", "--n", "many"], ["--def", "undefended"]])
def test_what_argparse_refuses(workspace: Path, arguments: list[str]) -> None:
    answer = run_script(workspace, EVALUATE, *arguments)
    assert answer.code == 2
    assert answer.err.startswith("usage: ")
    assert "error: " in answer.err.splitlines()[-1]


def test_an_unknown_defense_through_the_script(workspace: Path) -> None:
    sentence = refusal(run_script(workspace, "synthetic/train_defense.py", "--defense", "selenna"))
    assert sentence.startswith("unknown defense 'selenna'. Did you mean 'selena'? Known: undefended, selena, ")


# Refused later, in this process


@pytest.mark.parametrize("command", [train_defense, evaluate_mia])
def test_unknown_defenses(workspace: Path, call: Call, command: object) -> None:
    answer = call(command, workspace / "synthetic", "--defense", "undefned")
    assert "unknown defense 'undefned'. Did you mean 'undefended'?" in refusal(answer)


@pytest.mark.parametrize("section", ["hampp.gamma=1", "hamp.gama=1"])
def test_misspelt_sections_of_defenses(workspace: Path, call: Call, section: str) -> None:
    answer = call(train_defense, workspace / "synthetic", "--defense", "undefended", "--set", f"defenses.{section}")
    sentence = refusal(answer)
    assert "Did you mean" in sentence
    assert ("'hamp'" if "hampp" in section else "'gamma'") in sentence


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:9", "device 'cuda:9' is not on this machine"), ("gpu", "unknown device 'gpu'. Known: auto, cpu, cuda")],
)
def test_devices_that_are_not_there(workspace: Path, call: Call, device: str, words: str) -> None:
    answer = call(train_defense, workspace / "synthetic", "--defense", "undefended", "--device", device)
    assert words in refusal(answer)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (train_defense, ["--defense", "undefended"]),
        (train_ddpm, []),
        (draw_candidates, []),
        (evaluate_mia, ["--defense", "undefended"]),
    ],
)
def test_without_a_partition(workspace: Path, call: Call, command: object, arguments: list[str]) -> None:
    folder = workspace / "svhn"
    sentence = refusal(call(command, folder, *arguments, "--profile", "small", "--device", "cpu"))
    assert sentence == (
        f"{folder}/data/partition/small/manifest.json is missing. Make it with: python svhn/data_partition.py --profile small"
    )
    assert sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__") == [
        "configs",
        "diff_defense",
        "evaluate_MIAs",
    ]


def test_without_a_diffusion_model(copied: Path, tiny: Path, call: Call) -> None:
    weights = copied / "diff_defense/diff_models/tiny/seed0/unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    for command, arguments in ((draw_candidates, []), (evaluate_mia, ["--defense", "undefended"])):
        sentence = refusal(call(command, copied, *arguments, "--profile", tiny, "--device", "cpu"))
        assert sentence.startswith(f"{weights} is missing. Make it with: python synthetic/diff_defense/train_ddpm.py")


def test_a_damaged_diffusion_model(copied: Path, tiny: Path, call: Call) -> None:
    weights = copied / "diff_defense/diff_models/tiny/seed0/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    for command in (draw_candidates, train_ddpm):
        sentence = refusal(call(command, copied, "--profile", tiny, "--device", "cpu"))
        assert sentence.startswith(
            f"{weights.parent} is damaged. Delete it and run: python synthetic/diff_defense/train_ddpm.py"
        )


def test_a_diffusion_model_of_other_settings(copied: Path, tiny: Path, call: Call) -> None:
    for command in (draw_candidates, train_ddpm):
        answer = call(command, copied, "--profile", tiny, "--device", "cpu", "--set", "ddpm.steps=21")
        assert "was made under other settings (steps: 20 -> 21)" in refusal(answer)
