"""The table of docs/serve.md: how fast a protected classifier answers, from the JSON files of benchmarks/serving.py."""

from pathlib import Path
from typing import Any

import pandas as pd

from common.files import read_json
from common.report.rows import SCENARIO_TITLES, as_markdown
from common.report.style import DATASET_TITLES, title_of

COMMAND = "python -m benchmarks.serving --dataset cifar10 --profile narrow"


def serving_table(root: Path) -> str:
    """A table for each measurement under `root`/results, and what it was measured on. Without any, the command."""
    paths = sorted((root / "results").glob("benchmark_serving_*.json"))
    if not paths:
        return f"There is no measurement yet. This makes it: `{COMMAND}`"
    return "\n\n".join(_measurement(read_json(path, COMMAND)) for path in paths)


def _measurement(found: dict[str, Any]) -> str:
    rest = {
        batch: max(one["share"]["rest"] for one in found["answers"] if one["batch"] == batch and one["scenario"])
        for batch in dict.fromkeys(one["batch"] for one in found["answers"])
    }
    shares = ", ".join(f"{100 * share:.1f}% in calls of {batch}" for batch, share in rest.items())
    machine = found["machine"]
    return (
        f"**{title_of(DATASET_TITLES, found['dataset'])}, profile {found['profile']}**, N = {found['n']}, T = {found['t']}; "
        f"{machine['processor']}, {machine['cores']} cores, {found['device']}, {found['threads']} thread(s), torch "
        f"{found['torch']}, commit {found['commit']}.\n\n{as_markdown(pd.DataFrame(map(_line, found['answers'])))}\n\n"
        f"Of the CPU time of a protected query, what is outside of the networks is at most {shares}."
    )


def _line(answer: dict[str, Any]) -> dict[str, str]:
    bare, share = answer["scenario"] is None, answer["share"]
    return {
        "images a call": str(answer["batch"]),
        "Diffence": "without" if bare else SCENARIO_TITLES[answer["scenario"]],
        "draws": "-" if bare else str(answer["draws_at_once"]),
        "candidates an image": "-" if bare else f"{answer['draws']:.1f}",
        "images a second": f"{answer['images_per_second']:.1f}",
        "p50 (ms)": f"{answer['call_ms']['p50']:.1f}",
        "p99 (ms)": f"{answer['call_ms']['p99']:.1f}",
        "calls": str(answer["calls"]),
        "CPU / bare": f"{answer['over_bare']:.1f}",
        "UNet / classifier / rest (%)": " / ".join(f"{100 * share[name]:.0f}" for name in ("unet", "classifier", "rest")),
    }
