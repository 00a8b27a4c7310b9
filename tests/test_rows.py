"""Rows of other schemas are migrated or refused by name, and two processes that write rows at once lose nothing."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tables import row_of

from common.attacks import ATTACKS, Scores
from common.errors import UserError
from common.files import locked, read_json, write_json
from common.pair import Pair
from common.report import collect, rows
from common.report.rows import read_row, write_result
from common.run import SCHEMA

ROOT = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")
ROUNDS = 4


def stored(folder: Path, row: dict[str, Any]) -> Path:
    path = folder / "row.json"
    path.write_text(json.dumps(row))
    return path


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "evaluation"),
        ({"best": None, "runs": []}, "repeated_queries"),
        ({"best": None, "boundary": {}}, "label_only"),
    ],
)
def test_a_row_of_schema_1_is_brought_up_to_date(tmp_path: Path, keys: dict[str, Any], kind: str) -> None:
    """It has no schema, and maybe no kind, which follows from its keys. Everything else stays."""
    row = {key: value for key, value in (row_of() | keys).items() if value is not None or key == "diffence"}
    del row["kind"]
    assert read_row(stored(tmp_path, row)) == row | {"kind": kind, "schema": SCHEMA}
    named = row | {"kind": kind}  # other rows of schema 1 say their kind
    assert read_row(stored(tmp_path, named)) == named | {"schema": SCHEMA}


def test_a_row_of_this_schema_is_read_as_it_is(tmp_path: Path) -> None:
    row = row_of() | {"schema": SCHEMA}
    assert read_row(stored(tmp_path, row)) == row
    new_kind = {key: value for key, value in row.items() if key not in ("best", "attacks")} | {"kind": "a new experiment"}
    assert read_row(stored(tmp_path, new_kind)) == new_kind


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in row_of().items() if key not in keys}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (row_of() | {"schema": SCHEMA + 1}, f"has schema {SCHEMA + 1}, and this version reads up to {SCHEMA}: update"),
        (row_of() | {"schema": "2"}, "is no row of this project \\(its schema is '2'\\): move it away"),
        (row_of() | {"schema": 0}, "is no row of this project"),
        ({"points": 3}, r"\(schema 1\) lacks kind, dataset, profile, .* make it again"),
        (without("kind", "best"), r"\(schema 1\) lacks kind: make it again"),  # its kind cannot be told
        (without("kind") | {"schema": 2}, r"\(schema 2\) lacks kind: "),
        (without("gap_floor", "seed") | {"schema": 2}, r"\(schema 2\) lacks seed, gap_floor: .*git checkout .*row\.json"),
        (row_of() | {"utility": {"ece": float("nan"), "nll": 1.0}}, r"NaN or infinite numbers \(utility\.ece\): make it"),
        (row_of() | {"warnings": [{"p": -float("inf")}]}, r"NaN or infinite numbers \(warnings\.0\.p\)"),
    ],
)
def test_what_is_no_row_of_a_known_schema_is_refused_by_name(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = stored(tmp_path, row)
    with pytest.raises(UserError, match=message) as refused:
        read_row(path)
    assert str(refused.value).startswith(str(path))


def test_every_committed_row_can_be_read() -> None:
    paths = sorted((ROOT / "results").glob("*/*/*.json"))
    assert len(paths) > 100
    for path in paths:
        row, content = read_row(path), read_json(path, "")
        assert row == {"kind": row["kind"], **content, "schema": SCHEMA}


def tagged(name: str, tag: int) -> tuple[dict[str, Any], dict[str, Scores]]:
    """A row of the defense `name` and its scores, which all hold the number `tag`."""
    points = Pair(np.full(500, float(tag)), np.zeros(300))
    row = row_of(name) | {"warnings": [f"tag {tag}"], "schema": SCHEMA, "model": "resnet18"}
    return row, dict.fromkeys(ATTACKS, Scores(points, points))


def tag_of(row: Path) -> int:
    return int(read_json(row, "")["warnings"][0].removeprefix("tag "))


def slowly(write: Callable[..., None]) -> Callable[..., None]:
    def pause_and_write(*arguments: Any) -> None:
        time.sleep(0.03)
        write(*arguments)

    return pause_and_write


def write_and_collect(root: Path, who: int) -> None:
    """What one process does: it writes a row of its own and one that all write, and collects; files must belong together."""
    collect.ROOT = root
    for module, name in ((rows, "write_text"), (collect, "copy_file")):  # so that another process comes in between
        setattr(module, name, slowly(getattr(module, name)))
    made, kept = root / "cifar10" / "evaluate_MIAs" / "results", root / "results" / "cifar10" / "small-clean-seed0"
    for number in range(ROUNDS):
        write_result(made, *tagged(f"own{who}-{number}", number))
        write_result(made, *tagged("shared", 100 * who + number))
        copied = collect.collect("cifar10")
        assert {kept / f"own{who}-{i}.json" for i in range(number + 1)} <= set(copied)
        with locked(made):
            tag = tag_of(made / "shared.json")
            assert f"Warning: tag {tag}\n" in (made / "shared").read_text()
            for scores in (made / "scores").glob("*-based-shared.npy"):
                assert np.load(scores)[:500, 0].tolist() == 500 * [tag]
        with locked(kept), np.load(kept / "shared.npz") as packed:
            assert {float(packed[attack][0]) for attack in ATTACKS} == {tag_of(kept / "shared.json")}


def test_scores_of_attacks_that_a_new_row_lacks_go(tmp_path: Path) -> None:
    """And those of other rows stay."""
    row, scores = tagged("hamp", 1)
    write_result(tmp_path, *tagged("strong-hamp", 1))
    write_result(tmp_path, row, scores | {"lira-online": scores["nn"]})
    assert (tmp_path / "scores" / "lira-online-based-hamp.npy").is_file()
    write_result(tmp_path, row, scores)
    left = {path.name for path in (tmp_path / "scores").iterdir()}
    assert left == {f"{attack}-based-{name}.npy" for attack in scores for name in ("hamp", "strong-hamp")}


def test_two_processes_that_write_and_collect_at_once_lose_nothing(tmp_path: Path) -> None:
    """Meanwhile a reader without a lock finds every file whole."""
    processes = [FORK.Process(target=write_and_collect, args=(tmp_path, who)) for who in (1, 2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        for path in tmp_path.rglob("*.json"):
            read_row(path)
        for path in tmp_path.rglob("*.npz"):
            with np.load(path) as packed:
                assert len(packed[next(iter(ATTACKS))]) == 800
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    names = {f"own{who}-{number}" for who in (1, 2) for number in range(ROUNDS)} | {"shared"}
    kept = tmp_path / "results" / "cifar10" / "small-clean-seed0"
    assert {path.stem for path in kept.glob("*.json")} == {path.stem for path in kept.glob("*.npz")} == names
    assert list(tmp_path.rglob("*.partial")) == []


def hold(folder: Path, log: Path) -> None:
    with locked(folder):
        log.write_text("held")
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = FORK.Process(target=hold, args=(tmp_path / "made", tmp_path / "log"))
    process.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    with locked(tmp_path / "made"):
        write_json(tmp_path / "made" / "row.json", {})
