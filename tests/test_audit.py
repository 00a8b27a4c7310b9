"""`python -m common.audit`: planted signals come out as closed forms say, and the page is safe."""

import base64
import json
import math
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Call, refusal, run_script
from planted import CLASSES, logits_of, save_planted
from scipy.special import softmax
from scipy.stats import norm

from common.attacks import ATTACKS, METRIC_ATTACKS, NNOptions, Outputs, suite
from common.attacks.shadow import SHADOW_ATTACKS
from common.audit import audit
from common.audit.__main__ import main as audit_main
from common.errors import UserError
from common.pair import Pair


@pytest.fixture(autouse=True)
def quick_nn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "NNOptions", partial(NNOptions, nn_epochs=2))


def run(files: dict[str, Path], out: Path, known_fraction: float = 0.5, seed: int = 0) -> dict[str, Any]:
    return audit.audit(files, known_fraction, 0.001, seed, out)


# what comes out


def test_planted_signal_gives_the_closed_form(tmp_path: Path) -> None:
    row = run(save_planted(tmp_path, 1.0, 8000), tmp_path / "out", known_fraction=0.05)
    expected = norm.cdf(1 / math.sqrt(2))  # .76025
    loss = row["attacks"]["loss"]
    assert loss["auc"] == pytest.approx(expected, abs=0.015)
    assert loss["auc_interval"][0] < expected < loss["auc_interval"][1]
    assert loss["tpr_at_fpr"]["rate"] == pytest.approx(norm.sf(norm.isf(0.001) - 1), abs=0.015)  # .0183
    assert row["gap_floor"] < row["attacks"][row["best"]]["auc"]
    # Shuffled membership: 15,200 scored points have a standard error of .0047.
    assert all(attack["null_auc"] == pytest.approx(0.5, abs=0.02) for attack in row["attacks"].values())
    assert row["warnings"] == []
    assert f"AUC {row['attacks'][row['best']]['auc']:.3f}" in row["summary"][0]


def test_without_leakage_the_intervals_hold_a_half(tmp_path: Path) -> None:
    row = run(save_planted(tmp_path, 0.0, 1000, shadows=8), tmp_path / "out")
    for name, attack in row["attacks"].items():
        low, high = attack["auc_interval"]
        assert low <= 0.5 <= high, name
    assert "chance" in row["summary"][1]


def test_shadow_models_bring_lira_and_rmia(tmp_path: Path) -> None:
    row = run(save_planted(tmp_path, 1.0, 1500, shadows=64), tmp_path / "out", known_fraction=0.1)
    # A median of 32 adds pi / 2 / 32 to the variance of either side of the comparison.
    expected = norm.cdf(1 / math.sqrt(2 * (1 + math.pi / 64)))
    assert row["attacks"]["lira-offline"]["auc"] == pytest.approx(expected, abs=0.03)
    assert row["attacks"]["lira-online"]["auc"] == pytest.approx(expected, abs=0.03)
    for mode in ("online", "offline"):
        assert row["attacks"][f"rmia-{mode}"]["auc"] > 0.65
        for name in ("lira", "rmia"):
            assert row["attacks"][f"{name}-{mode}"]["null_auc"] == pytest.approx(0.5, abs=0.05)
    assert row["shadows"] == {"models": 64, "median_in_models": 32, "left_out": []}


def test_without_in_models_only_offline_attacks_run(tmp_path: Path) -> None:
    files = save_planted(tmp_path, 1.0, 100, shadows=8)
    with np.load(files["shadows"]) as made:
        keep = made["keep"].copy()
        keep[:, 150:] = False
        np.savez(files["shadows"], logits=made["logits"], keep=keep)
    row = run(files, tmp_path / "out")
    assert {name for name in row["attacks"] if "lira" in name or "rmia" in name} == {"lira-offline", "rmia-offline"}
    assert row["shadows"]["left_out"] == ["lira-online", "rmia-online"]
    assert any(warning.startswith("Left out: lira-online, rmia-online.") for warning in row["warnings"])
    assert any("50 known non-members, fewer than 1 / FPR" in warning for warning in row["warnings"])
    assert any("too few" in warning for warning in row["warnings"])  # 50 non-members and 0.1% FPR


def test_few_in_models_are_warned_of(tmp_path: Path) -> None:
    """One IN model of each point, and two of one."""
    files = save_planted(tmp_path, 1.0, 100, shadows=8)
    words = "fewer than two shadow models that were trained on them"
    assert not any(words in warning for warning in run(files, tmp_path / "out")["warnings"])
    with np.load(files["shadows"]) as made:
        keep = np.arange(200) % 8 == np.arange(8)[:, None]
        keep[:2, 0] = True
        np.savez(files["shadows"], logits=made["logits"], keep=keep)
    row = run(files, tmp_path / "out")
    assert row["shadows"] == {"models": 8, "median_in_models": 1, "left_out": []}
    assert any(words in warning for warning in row["warnings"])


RMIA = {"rmia-offline", "rmia-online"}


@pytest.mark.parametrize(("trained", "expected"), [([1, 1], RMIA), ([1, 2], RMIA | {"lira-offline"})])
def test_few_shadow_models_allow_some_attacks(trained: list[int], expected: set[str], tmp_path: Path) -> None:
    """[IN, OUT] models of every point. One of either has no spread; LiRA offline is content with two OUT."""
    files = save_planted(tmp_path, 1.0, 100)
    with np.load(files["members"]) as one, np.load(files["non_members"]) as other:
        labels = np.concatenate([one["labels"], other["labels"]])
    rng = np.random.default_rng(1)
    keep = rng.permuted(np.repeat([[True], [False]], trained, axis=0) & np.ones(200, bool), axis=0)
    files["shadows"] = tmp_path / "s.npz"
    np.savez(files["shadows"], logits=logits_of(rng.normal(size=keep.shape) + keep, labels), keep=keep)
    row = run(files, tmp_path / "out")
    assert set(SHADOW_ATTACKS) & set(row["attacks"]) == expected
    assert set(row["shadows"]["left_out"]) == set(SHADOW_ATTACKS) - expected


def test_most_exposed_records_are_the_top_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = save_planted(tmp_path, 1.0, 300)
    monkeypatch.setattr(suite, "ATTACKS", {name: ATTACKS[name] for name in ("correctness", "loss")})
    row = run(files, tmp_path / "out", seed=3)
    assert row["best"] == "loss"
    with np.load(files["members"]) as made:
        logits, labels = made["logits"], made["labels"]
    scored = audit.draw_pools(Pair(300, 300), 0.5, 3).scored.members
    own = logits[np.arange(300), labels]
    exposed = row["most_exposed"]
    assert [record["position"] for record in exposed] == scored[np.argsort(-own[scored])][:20].tolist()
    for record in exposed:
        assert record["label"] == labels[record["position"]]
        assert record["predicted"] == logits[record["position"]].argmax()
        assert record["p"] == pytest.approx(softmax(logits[record["position"]])[record["label"]], abs=1e-12)
    assert exposed[0]["non_members"] <= exposed[-1]["non_members"] <= row["scored"]["non_members"]


def test_known_and_scored_points_are_disjoint_and_depend_on_the_seed() -> None:
    first, second, other = (audit.draw_pools(Pair(101, 77), 0.3, seed) for seed in (0, 0, 1))
    for known, scored, count in zip(first.known, first.scored, (101, 77), strict=True):
        assert sorted([*known, *scored]) == list(range(count))
        assert len(known) == round(0.3 * count)
    assert first.known.members.tolist() == second.known.members.tolist() != other.known.members.tolist()


def test_same_seed_same_row_and_json_holds_it_all(tmp_path: Path) -> None:
    files = save_planted(tmp_path, 0.5, 60, shadows=4)
    rows = [run(files, tmp_path / name) for name in ("a", "b")]
    assert json.loads((tmp_path / "a" / "audit.json").read_text()) == json.loads(json.dumps(rows[0])) == rows[0]
    assert {**rows[0], "time": ""} == {**rows[1], "time": ""}


def test_saturated_probabilities_are_warned_of(tmp_path: Path) -> None:
    files, labels = save_planted(tmp_path, 0.5, 40), np.arange(40) % CLASSES
    np.savez(files["members"], probabilities=np.eye(CLASSES)[labels], labels=labels)
    np.savez(files["non_members"], probabilities=np.full((40, CLASSES), 1 / CLASSES), labels=labels)
    found = run(files, tmp_path / "out")["warnings"]
    assert any(warning.startswith("40 predictions have all classes but one at exactly 0") for warning in found)


def test_attacks_on_2000_points_and_100_classes_take_less_than_2_s(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    outputs = Pair(*(Outputs(rng.normal(size=(4000, 100)), rng.integers(0, 100, 4000)) for _ in range(2)))
    pools = audit.draw_pools(Pair(4000, 4000), 0.5, 0)
    monkeypatch.setattr(suite, "ATTACKS", {name: ATTACKS[name] for name in METRIC_ATTACKS})
    started = time.process_time()
    scores = suite.attack_all(outputs, pools.known, pools.scored, NNOptions(), 0)
    row = audit.measure(scores, scores, 0.001)
    assert time.process_time() - started < 2
    assert set(row["attacks"]) == set(METRIC_ATTACKS)


# the page and the command


class Page(HTMLParser):
    """Collects what a test asks of a page; every tag must close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "style")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_command_writes_a_page_that_needs_no_network_and_escapes_names(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<&"
    folder.mkdir()
    files = save_planted(folder, 2.0, 60, shadows=4)
    options = [part for name, path in files.items() for part in (f"--{name.replace('_', '-')}", path)]
    answer = run_script(ROOT, "common.audit", *options, "--out", tmp_path / "out", "--seed", 7, options=("-m",))
    assert answer.code == 0, answer.err
    row = json.loads((tmp_path / "out" / "audit.json").read_text())
    for line in [*row["attacks"], *row["summary"], "Warning: TPR at 0.1% FPR"]:
        assert line in answer.out
    html = (tmp_path / "out" / "audit.html").read_text()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert "script" not in page.tags
    assert str(files["members"]) in page.text
    assert all(sentence in page.text for sentence in [*row["summary"], *row["warnings"]])
    assert "http:" not in html and "https:" not in html and "url(" not in html
    pictures = [base64.b64decode(link.removeprefix("data:image/png;base64,")) for link in page.links]
    assert [picture[:4] for picture in pictures] == [b"\x89PNG"] * 2
    assert pictures[0] == (tmp_path / "out" / "roc.png").read_bytes()


def test_a_refusal_is_one_sentence_with_exit_code_2(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    files = save_planted(tmp_path, 1.0, 30)
    members, non_members, out = files["members"], files["non_members"], tmp_path / "out"
    for arguments, words in (
        ((members, tmp_path / "none.npz"), "no file that exists"),
        ((members, members), "30 of 30 non-members"),
        ((members, non_members, "--known-fraction", 1), "between 0 and 1"),
        ((members, non_members, "--known-fraction", 0.2), "6 known and 24 scored"),
        ((members, non_members, "--shadows", members), "`keep`"),
    ):
        command = ("--members", arguments[0], "--non-members", *arguments[1:], "--out", out)
        assert words in refusal(call(audit_main, ROOT, *command))
    assert not out.exists()
    monkeypatch.setattr(audit, "attack_all", None)  # what follows is refused before the attacks take their time
    words = refusal(call(audit_main, ROOT, "--members", members, "--non-members", non_members, "--out", members))
    assert "cannot be a folder for results" in words


def test_the_audited_model_among_its_shadow_models_is_refused(tmp_path: Path) -> None:
    """LiRA's authors keep it there; counted among the shadow models it seems to leak where nothing does."""
    files = save_planted(tmp_path, 0.0, 100, shadows=8)
    with np.load(files["shadows"]) as made, np.load(files["members"]) as one, np.load(files["non_members"]) as other:
        target = np.concatenate([one["logits"], other["logits"]])[None]
        keep = np.concatenate([made["keep"], (np.arange(200) < 100)[None]])
        np.savez(files["shadows"], logits=np.concatenate([made["logits"], target]).astype(np.float32), keep=keep)
    with pytest.raises(UserError, match="shadow model 8, counted from 0, answers as the audited model"):
        run(files, tmp_path / "out")


def test_labels_alone_may_agree_with_a_shadow_model(tmp_path: Path) -> None:
    """35 classes: phi of a right and of a wrong answer differ by rounding among themselves."""
    right = np.repeat([True, False], [100, 60])
    labels, wrong = np.arange(160) % 35, (np.arange(160) + 1) % 35
    logits = 2.0 * np.eye(35)[np.where(right, labels, wrong)]
    files = {name: tmp_path / f"{name}.npz" for name in ("members", "non_members", "shadows")}
    np.savez(files["members"], logits=logits, labels=labels)
    np.savez(files["non_members"], logits=logits[::-1], labels=labels[::-1])
    both = np.concatenate([logits, logits[::-1]])
    np.savez(files["shadows"], logits=np.stack([both] * 4), keep=np.arange(4)[:, None] % 2 == np.arange(320) % 2)
    assert run(files, tmp_path / "out")["shadows"]["models"] == 4
