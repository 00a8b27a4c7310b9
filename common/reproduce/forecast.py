"""The forecast of a plan: the minutes of each job, and how far a limit of minutes reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import pandas as pd

from common.experiments.plan import DONE, MISSING, Job
from common.report.rows import as_markdown
from common.reproduce.work import Work

FITS, STARTED, LATER = "done", "started", "not reached"  # by the end of the minutes


@dataclass(frozen=True)
class Line:
    """A job of the forecast. minutes: of the job. total: of all jobs until its end. reach: empty where it is not run."""

    job: str
    state: str
    minutes: float = 0.0
    total: float = 0.0
    reach: str = ""


def forecast(jobs: Sequence[Job], works: Sequence[Work], seconds: Mapping[str, float], minutes: float = inf) -> list[Line]:
    """The minutes of each job, from its work and the `seconds` of each unit, and whether it fits into `minutes`.

    The jobs run one after the other, as with one worker. A job that is done takes no time. Neither does one whose product was
    made under other settings, nor a job that needs such a one, since the launcher leaves them out. A job that was stopped
    before counts in full.
    """
    lines: list[Line] = []
    total = 0.0
    states: dict[str, str] = {}
    for job, work in zip(jobs, works, strict=True):
        unmet = next((need for need in job.needs if states[need] not in (DONE, MISSING)), None)
        states[job.name] = job.state() if unmet is None else f"needs {unmet}"
        if states[job.name] != MISSING:
            lines.append(Line(job.name, states[job.name], total=total))
            continue
        before, cost = total, sum(count * seconds[unit] for unit, count in work.items()) / 60
        total += cost
        reach = FITS if total <= minutes else STARTED if before < minutes else LATER
        lines.append(Line(job.name, MISSING, cost, total, reach))
    return lines


def forecast_table(lines: Sequence[Line], minutes: float) -> str:
    """The lines as a Markdown table. The last column is there where the minutes have a limit."""
    limit = f"after {minutes:g} minutes"
    table = [
        {
            "job": line.job,
            "state": line.state,
            "minutes": f"{line.minutes:,.1f}",
            "in all": f"{line.total:,.1f}",
            limit: line.reach,
        }
        for line in lines
    ]
    frame = pd.DataFrame(table)
    return as_markdown(frame if minutes < inf else frame.drop(columns=limit))


def seconds_table(seconds: Mapping[str, float], works: Sequence[Work]) -> str:
    """The measured seconds of each unit, and how many of them the missing jobs have, as a Markdown table."""
    counts = sum(works, Work())
    table = [
        {"unit of work": unit, "milliseconds": f"{1000 * each:,.2f}", "number": f"{counts[unit]:,}"}
        for unit, each in seconds.items()
    ]
    return as_markdown(pd.DataFrame(table))
