"""Settings: the paper's values by default, every shipped profile loads, and what is wrong is refused in one sentence."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATASETS, ROOT, tiny_run, write_profile

from common.config import Config, Data
from common.defenses import DEFENSES
from common.defenses.hamp import Options as HAMP
from common.errors import UserError
from common.profiles import load_config, read_options
from common.training.targets import target_classifier

SYNTHETIC = ROOT / "synthetic"
PROFILES = sorted(path.relative_to(ROOT).as_posix() for name in DATASETS for path in (ROOT / name / "configs").glob("*.yaml"))


def refused(profile: str | Path, *overrides: str) -> str:
    """The sentence with which a profile and its overrides are refused."""
    with pytest.raises(UserError) as caught:
        load_config(SYNTHETIC, str(profile), list(overrides))
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# What is shipped


def test_rmia_has_the_value_of_its_authors_for_each_data_set() -> None:
    for profile in PROFILES:
        config = load_config(ROOT / Path(profile).parts[0], Path(profile).stem, [])
        assert config.attack.rmia_a == (0.6 if profile.startswith("cifar100/") else 0.3), profile


def test_every_folder_has_both_profiles() -> None:
    assert {f"{name}/configs/{profile}.yaml" for name in DATASETS for profile in ("paper", "small")} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_shipped_profiles_load_with_the_options_of_every_defense(profile: str) -> None:
    folder, _, name = profile.split("/")
    config = load_config(ROOT / folder, name.removesuffix(".yaml"))
    assert set(config.defenses) <= set(DEFENSES)
    for defense, section in config.defenses.items():
        read_options(DEFENSES[defense].options, section, defense)
    assert target_classifier(tiny_run(ROOT / folder, ROOT / profile))(torch.zeros(2, 3, 32, 32)).shape[0] == 2


def test_the_paper_profile_of_cifar10() -> None:
    """Section IV-A and Appendix E; whatever the YAML spells out is a default too."""
    config = load_config(ROOT / "cifar10", "paper")
    assert (config.data.members, config.data.reference, config.data.non_members) == (25_000, 25_000, 10_000)
    assert (config.train.epochs, config.train.batch_size, config.train.lr) == (100, 128, 1e-3)
    assert (config.train.weight_decay, config.train.amsgrad) == (1e-6, True)
    assert (config.model.name, config.model.width, config.model.depth) == ("resnet18", 0, 0)
    assert (config.diffence.n, config.diffence.t, config.diffence.steps, config.diffence.forward) == (30, 160, 1, "paper")
    assert (config.ddpm.channels, config.ddpm.attention, config.ddpm.layers) == ([128, 256, 256, 256], [1], 2)
    assert (config.ddpm.steps, config.ddpm.lr, config.ddpm.ema_decay, config.ddpm.max_timestep) == (800_000, 2e-4, 0.9999, 1000)
    assert (config.attack.nn_epochs, config.attack.nn_lr, config.attack.fpr) == (200, 5e-4, 0.001)
    made, default = config.as_dict(), Config().as_dict()
    assert made["train"].pop("bf16") and made["ddpm"].pop("bf16")  # a matter of the machine, not of the paper
    assert not (default["train"].pop("bf16") or default["ddpm"].pop("bf16"))
    assert {key: made[key] for key in made if key != "defenses"} == {key: default[key] for key in made if key != "defenses"}


@pytest.mark.parametrize(("folder", "members"), [("cifar100", 25_000), ("svhn", 5_000)])
def test_the_paper_profiles_of_the_others(folder: str, members: int) -> None:
    config = load_config(ROOT / folder, "paper")
    assert (config.data.members, config.diffence.n, config.train.epochs) == (members, 30, 100)
    assert config.ddpm.flip == (folder != "svhn")  # a mirrored digit is another one


DEFAULTS: dict[str, dict[str, Any]] = {
    "undefended": {},
    "selena": {"k": 25, "l": 10, "average": "probabilities"},
    "advreg": {
        "alpha": 6.0,
        "penalty": "linear",
        "schedule": "released",
        "attack_batches": 0,
        "defender_batches": 0,
        "warmup_epochs": 1,
        "warmup_attack_passes": 5,
        "attack_lr": 1e-4,
    },
    "hamp": {"gamma": 0.8, "alpha": 0.001, "scaling": "released", "search": "released", "test_time": False},
    "relaxloss": {"alpha": 0.05, "upper": 1.0, "flattening": "cifar", "detach": False},
    "dpsgd": {
        "noise_multiplier": 0.1,
        "max_grad_norm": 1.2,
        "target_epsilon": 0.0,
        "delta": 1e-5,
        "groups": 0,
        "physical_batch": 256,
    },
    "memguard": {"epsilon": 1.0, "steps": 300, "epochs": 400, "lr": 1e-3, "batch_size": 64},
}
DEFAULTS["dpsgd-private"] = DEFAULTS["dpsgd"] | {"target_epsilon": 8.0}
DEFAULTS["dpsgd-strong"] = DEFAULTS["dpsgd"] | {
    "noise_multiplier": 0.2,
    "max_grad_norm": 1.0,
    "groups": 16,
    "batch_size": 2048,
    "epochs": 200,
    "lr": 2e-3,
    "views": 8,
    "shift": 4,
    "flip": True,
    "ema_decay": 0.999,
}


@pytest.mark.parametrize("name", DEFENSES)
def test_the_defaults_of_a_defense_are_its_setting_for_cifar10(name: str) -> None:
    """Options that no profile names decide committed rows as well: changing one here changes what was measured."""
    kind = DEFENSES[name].options
    assert asdict(kind()) == DEFAULTS[name]
    section = load_config(ROOT / "cifar10", "paper").defenses.get(name, {})
    assert asdict(read_options(kind, section, name)) == DEFAULTS[name]


# Reading


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads `1e-3`, without a point, as a word."""
    path = tmp_path / "mine.yaml"
    path.write_text("train: {lr: 1e-3, weight_decay: 5e-4}\ndefenses: {hamp: {alpha: 1e-3}}\n")
    config = load_config(SYNTHETIC, str(path), ["ddpm.lr=3e-4"])
    assert (config.train.lr, config.train.weight_decay, config.ddpm.lr) == (1e-3, 5e-4, 3e-4)
    assert read_options(HAMP, config.defenses["hamp"], "hamp").alpha == 1e-3


def test_a_profile_names_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  epochs: 7\n")
    config = load_config(SYNTHETIC, str(path))
    assert config.train.epochs == 7
    assert config.as_dict() | {"train": None} == Config().as_dict() | {"train": None}


def test_overrides_win_and_the_last_wins() -> None:
    plain = load_config(SYNTHETIC, "small")
    changes = ["train.epochs=3", "train.epochs=4", "ddpm.channels=[8,16]", "defenses.hamp.gamma=0.5"]
    config = load_config(SYNTHETIC, "small", changes)
    assert (config.train.epochs, config.ddpm.channels) == (4, [8, 16])
    assert config.defenses["hamp"]["gamma"] == 0.5
    assert config.train.batch_size == plain.train.batch_size


# Refusals


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["train.epoch", "Did you mean", "'epochs'"]),
        ("trian.epochs=3", ["Did you mean", "'train'"]),
        ("diffence.N=3", ["diffence.N", "'Diffence'"]),
        ("train.epochs=three", ["train.epochs", "'three'", "Integer"]),
        ("train.epochs=1.5", ["train.epochs", "1.5"]),
        ("train.epochs", ["train.epochs", "None"]),
        ("train.amsgrad=maybe", ["train.amsgrad", "'maybe'", "bool"]),
        ("train=3", ["train", "3"]),
        ("diffence.forward=papr", ["diffence.forward", "'papr'", "'paper'", "'released'"]),
        ("diffence.n=0", ["diffence.n", "candidates", "at least 1", "not 0"]),
        ("diffence.t=0", ["diffence.t", "1..1000", "not 0"]),
        ("diffence.t=1001", ["diffence.t", "1..1000", "not 1001"]),
        ("diffence.t=161", ["diffence.t = 161", "ddpm.max_timestep = 160", "retrain"]),
        ("diffence.steps=101", ["diffence.steps", "1..diffence.t = 100", "not 101"]),
        ("data.scored=5000", ["data.fit + data.known + data.scored = 5100", "data.members = 200", "lower them"]),
        ("data.non_members=199", ["= 200 exceed data.non_members = 199"]),
        ("data.known=0", ["data.known", "at least 1"]),
        ("train.epochs=0", ["train.epochs", "at least 1"]),
        ("train.batch_size=1", ["train.batch_size", "at least 2"]),
        ("train.lr=-1", ["train.lr", "positive", "-1"]),
        ("train.lr=inf", ["train.lr", "positive", "inf"]),
        ("ddpm.warmup=-1", ["ddpm.warmup", "negative", "-1"]),
        ("train.weight_decay=-1", ["train.weight_decay", "negative", "-1"]),
        ("ddpm.lr=0", ["ddpm.lr", "positive"]),
        ("ddpm.dropout=1", ["ddpm.dropout", "below 1"]),
        ("ddpm.warmup=-5", ["ddpm.warmup", "-5"]),
        ("ddpm.channels=[]", ["ddpm.channels", "one level"]),
        ("ddpm.attention=[9]", ["ddpm.attention", "9"]),
        ("attack.nn_epochs=0", ["attack.nn_epochs", "positive"]),
        ("attack.fpr=0", ["attack.fpr", "between 0 and 1"]),
        ("attack.rmia_a=2", ["attack.rmia_a", "0..1", "2"]),
        ("ddpm.max_timestep=1001", ["ddpm.max_timestep", "1..1000"]),
        ("ddpm.channels=[8,15]", ["ddpm.channels", "multiples", "4", "15"]),
        ("", ["--set"]),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, override: str, words: list[str]) -> None:
    sentence = refused(write_profile(tmp_path / "tiny.yaml"), override)
    for word in words:
        assert word in sentence


def test_the_limits_themselves_are_taken(tmp_path: Path) -> None:
    path = write_profile(tmp_path / "tiny.yaml", "ddpm.max_timestep=1000", "data.scored=100")
    assert load_config(SYNTHETIC, str(path), ["diffence.t=1000", "diffence.n=1"]).diffence.t == 1000
    assert load_config(SYNTHETIC, str(path), ["diffence.t=1"]).diffence.t == 1
    Data(members=3, reference=0, non_members=3, fit=1, known=1, scored=1)  # no exception


def test_a_misspelt_option_of_a_defense_names_its_section() -> None:
    with pytest.raises(UserError, match=r"defenses\.hamp.*'gama'.*Did you mean.*'gamma'") as caught:
        read_options(HAMP, {"gama": 0.5}, "hamp")
    assert "\n" not in str(caught.value)


def test_unknown_profiles() -> None:
    sentence = refused("papr")
    for word in ("'papr'", "synthetic", "paper, small", ".yaml"):
        assert word in sentence
    assert refused("nowhere/mine.yaml") == "there is no configuration file nowhere/mine.yaml."


@pytest.mark.parametrize(
    "content",
    [
        b"train: [",
        b"train:\n\tepochs: 3\n",
        b"train: {epochs: 3, epochs: 4}",
        b"- a\n- b\n",
        b"3\n",
        b"train: 3\n",
        b"nope: 1\n",
        b"\x00\x01",
        b"\xff\xfe\x80",
    ],
)
def test_unreadable_profiles_name_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_an_unreadable_override_is_what_is_blamed() -> None:
    sentence = refused("small", "train.epochs={")
    assert "--set" in sentence
    assert "small.yaml" not in sentence
