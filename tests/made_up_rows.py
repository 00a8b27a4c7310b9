"""Rows with made-up numbers, of every kind that the report reads, and a folder to put them in."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT

from common.config import Config
from common.report import rows as report

Row = dict[str, Any]
RATE = {"rate": 0.02, "hits": 40, "errors": 2, "positives": 2000, "negatives": 2000, "interval": [0.014, 0.027]}
FIVE = ("nn", "loss", "confidence", "entropy", "m-entropy")


def attack(auc: float, accuracy: float = 0.6, half_width: float = 0.02) -> Row:
    """The part of a row about one attack."""
    interval = [auc - half_width, auc + half_width]
    return {"auc": auc, "auc_interval": interval, "accuracy": accuracy, "tpr_at_fpr": RATE, "tnr_at_fnr": RATE}


def provenance(kind: str, dataset: str, profile: str, protocol: str, defense: str, seed: int, overrides: list[str]) -> Row:
    return {
        "kind": kind,
        "dataset": dataset,
        "profile": profile,
        "protocol": protocol,
        "defense": defense,
        "seed": seed,
        "overrides": overrides,
        "model": next((one.partition("=")[2] for one in overrides if one.startswith("model.name=")), "resnet18"),
        "commit": "0123456789ab",
        "torch": "2",
        "device": "cpu",
        "threads": 1,
        "config": Config().as_dict() | {"attack": Config().as_dict()["attack"] | {"shadows": 16}},
    }


def evaluation(
    dataset: str = "cifar10",
    defense: str = "undefended",
    scenario: str | None = None,
    auc: float = 0.8,
    accuracy: float = 0.7,
    test_accuracy: float = 0.75,
    half_width: float = 0.02,
    seed: int = 0,
    profile: str = "narrow",
    protocol: str = "clean",
    overrides: tuple[str, ...] = (),
) -> Row:
    """A row of kind evaluation: `auc` and `accuracy` are those of the best of five, the gap attack has .62."""
    names = (*FIVE, "lira-online") if any("shadows" in one for one in overrides) else FIVE
    facts = {
        "scenario": scenario,
        "n": 30,
        "t": 160,
        "interval": [0.3, 9.3],
        "labels_changed": {"members": 0, "non_members": 0},
        "no_match": {"members": 1, "non_members": 2},
        "draws": {"members": 2.0, "non_members": 3.0},
    }
    best = {"attack": "nn", "auc": auc, "accuracy": accuracy, "accuracy_oracle": accuracy}
    return provenance("evaluation", dataset, profile, protocol, defense, seed, list(overrides)) | {
        "accuracy": {"members": 1.0, "non_members": test_accuracy},
        "scored": {"members": 2000, "non_members": 2000},
        "utility": {"accuracy": test_accuracy, "ece": 0.14, "nll": 1.5},
        "attacks": {name: attack(auc, accuracy, half_width) for name in names} | {"correctness": attack(0.62, 0.62)},
        "best": best,
        "gap_floor": 0.62,
        "null": {"attacks": {"nn": {"auc": 0.5}}, "best": best | {"auc": 0.5}},
        "diffence": None if scenario is None else facts,
        "warnings": [],
    }


def label_only(dataset: str, defense: str, scenario: str | None, boundary: float, images: int = 50) -> Row:
    return provenance("label_only", dataset, "narrow", "clean", defense, 0, []) | {
        "scored": {"members": images, "non_members": images},
        "diffence": scenario and {"scenario": scenario},
        "attacks": {"correctness": attack(0.62, 0.62), "boundary": attack(boundary, 0.66)},
        "boundary": {"steps": 10},
    }


def overhead(dataset: str, defense: str, alone: float) -> Row:
    """Times in milliseconds: `alone` for an image without Diffence, ten times that in scenario 1, a tenth in a batch of 50."""
    ways = [(None, None, 1.0)] + ([("1", 1, 10.0), ("1", 30, 20.0)] if defense == "undefended" else [])
    answers = [
        {"scenario": scenario, "batch": batch, "draws_at_once": at_once, "wall_ms": {"mean": factor * alone / batch**0.5}}
        for scenario, at_once, factor in ways
        for batch in (1, 100)
    ]
    return provenance("overhead", dataset, "narrow", "clean", defense, 0, []) | {"batch": 100, "n": 30, "answers": answers}


def training_cost(dataset: str, defense: str, hours: float) -> Row:
    return provenance("training_cost", dataset, "narrow", "clean", defense, 0, []) | {
        "seconds": 3600 * hours,
        "ddpm": {"steps": 2000, "seconds": 900.0},
    }


def intervals(dataset: str, n: int, t: int) -> Row:
    overrides = [] if (n, t) == (30, 160) else [f"diffence.n={n}", f"diffence.t={t}"]
    points = [{"js": 0.01 * i, "best_auc": 0.6 + 0.01 * i, "best_accuracy": 0.6} for i in range(1, 6)]
    return provenance("intervals", dataset, "narrow", "clean", "undefended", 0, overrides) | {
        "n": n,
        "t": t,
        "scored": {"members": 2000, "non_members": 2000},
        "attacks": ["loss", "entropy"],
        "intervals": points,
        "rank_correlation": {"js_and_auc": 0.71, "p_value": 0.01},
        "draws": [{"share": 0.5, "cdf": np.linspace(0.3, 0.9, n).tolist(), "later_hits": 0.4}],
    }


def n_and_t(dataset: str) -> Row:
    """AUC .90 without Diffence; N and T each take a little away."""
    ns, ts = [2, 30], [40, 160]
    cells = [
        {"t": t, "n": n, "scenario": scenario, "best": {"auc": 0.9 - n / 1000 - t / 1000, "accuracy": 0.7}}
        for scenario in ("1", "3")
        for t in ts
        for n in ns
    ]
    return provenance("n_and_t", dataset, "narrow", "clean", "undefended", 0, []) | {
        "n_values": ns,
        "t_values": ts,
        "scenarios": ["1", "3"],
        "gap_floor": 0.62,
        "without": {"best": {"auc": 0.9, "accuracy": 0.8}},
        "cells": cells,
    }


def worst_case(
    defense: str,
    scenario: str | None,
    canaries: float,
    controls: float,
    fallback: str = "original",
    epsilon: float | None = None,
) -> Row:
    """Eight models and 100 canaries. `canaries` and `controls` are what `knowing` finds at 0.1% FPR; LiRA finds half of it."""

    def group(rate: float) -> Row:
        def found(value: float) -> Row:
            return {"rate": value, "interval": [max(value - 0.05, 0), value + 0.05]}

        attacks = {
            name: {"auc": 0.6, "tpr_at": {"0.001": found(factor * rate), "0.01": found(1.5 * factor * rate)}}
            for name, factor in (("lira-online", 0.5), ("knowing", 1.0), ("correctness", 0.0))
        }
        share = 0.0 if scenario is None else 0.3
        return {
            "points": 100,
            "given_label": {"members": 0.9, "non_members": 0.7},
            "kept": {"members": 0.5, "non_members": 0.6},
            "no_match": {"members": share, "non_members": share / 3},
            "attacks": attacks,
        }

    overrides = ["data.canaries=100"] + (["diffence.fallback=reorder"] if fallback == "reorder" else [])
    return provenance("worst_case", "cifar10", "narrow", "clean", defense, 0, overrides) | {
        "scenario": scenario,
        "fallback": fallback,
        "models": 8,
        "training": {} if epsilon is None else {"epsilon": epsilon},
        "scored": {"members": 400, "non_members": 400},
        "canaries": group(canaries),
        "controls": group(controls),
    }


def write_rows(root: Path, *rows: Row) -> Path:
    """Write rows into `root`/results as `common.report collect` would, with the paper's numbers; returns the folder."""
    for number, row in enumerate(rows):
        name = report.result_name(row) if row["kind"] == "evaluation" else f"{row['kind']}-{row['defense']}-{number}"
        path = root / "results" / row["dataset"] / report.setting(row) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    shutil.copy(ROOT / "results" / "paper.csv", root / "results")
    return root / "results"


def write_scores(row: Path, separation: float) -> None:
    """Scores beside a row: log-confidences of 200 members, and of 200 non-members that are less confident and half wrong."""
    rng = np.random.default_rng(0)
    log_odds = [rng.normal(6 + separation, 1, 200), rng.normal(6, 2, 200)]
    log_p = np.concatenate([-np.log1p(np.exp(-side)) for side in log_odds]).astype(np.float32)
    correct = np.concatenate([np.ones(200), np.tile([1.0, 0.0], 100)]).astype(np.float32)
    arrays = {"loss": log_p, "entropy": log_p, "correctness": correct}
    members = {f"{name} members": np.array(200) for name in arrays}
    np.savez_compressed(row.with_suffix(".npz"), **arrays, **members)  # type: ignore[arg-type]
