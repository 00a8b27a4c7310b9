"""The sentences, the table and the HTML page of an audit, from its row.

The page is a single file with its pictures inside. It has no script and loads nothing. Text from a user's file is escaped.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from common.attacks.shadow import population_warnings
from common.metrics.intervals import LEVEL
from common.metrics.privacy import pool_warnings
from common.report.experiments import attack_columns
from common.report.page_style import STYLE

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Membership inference audit</title>
<style>{{ style|safe }}
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2.5rem; }
.columns > section { min-width: 0; }
body.pair { max-width: 100rem; }
</style>
</head>
{% macro report(row, table, pictures) %}
<p class="small">{% for file in row.files.values() %}<code>{{ file.path }}</code>{{ ", " if not loop.last }}{% endfor %};
{{ row.classes }} classes; {{ row.time }}</p>
<div class="verdict">{% for sentence in row.summary %}<p>{{ sentence }}</p>{% endfor %}</div>
{% if row.warnings %}<div class="warnings">{% for sentence in row.warnings %}<p>{{ sentence }}</p>{% endfor %}</div>{% endif %}
<h2>Attacks</h2>
<div class="wide" tabindex="0" role="region" aria-label="Table"><table>
<thead><tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in table.values %}
<tr{{ ' class="best"'|safe if line[0] == row.best }}>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<h2>ROC curves</h2>
<img alt="ROC curves on linear and logarithmic axes" src="data:image/png;base64,{{ pictures.roc }}">
<p class="small">The logarithmic axes on the right show what an attacker finds who hardly ever accuses a non-member.</p>
<h2>phi of members and non-members</h2>
<img alt="Histograms of phi of members and non-members" src="data:image/png;base64,{{ pictures.phi }}">
<p class="small">phi = log(p / (1 - p)), where p is the probability of the true label of a scored point. Where the histograms
overlap, an attack on the confidence alone has to guess.</p>
<h2>Most exposed records</h2>
<p class="small">The scored members with the highest scores under the attack <b>{{ row.best }}</b>. Positions in
<code>{{ row.files.members.path }}</code> count from 0. The last column says how many of the {{ row.scored.non_members }} scored
non-members have the same or a higher score.</p>
<div class="wide" tabindex="0" role="region" aria-label="Table"><table>
<thead><tr><th>position</th><th>label</th><th>predicted</th><th>p of label</th><th>score</th>
<th>non-members at or above</th></tr></thead>
<tbody>{% for record in row.most_exposed %}
<tr><td>{{ record.position }}</td><td>{{ record.label }}</td><td>{{ record.predicted }}</td>
<td>{{ "%.6f"|format(record.p) }}</td><td>{{ "%.5g"|format(record.score) }}</td><td>{{ record.non_members }}</td></tr>
{% endfor %}
</tbody></table></div>
<h2>How this was measured</h2>
<ul>
<li>{{ row.known.members }} of {{ row.points.members }} members and {{ row.known.non_members }} of {{ row.points.non_members }}
non-members were drawn at random (seed {{ row.seed }}). The attacker knows the membership of these known points. Thresholds are
fitted on them, and the NN attack trains on them. All numbers are about the other points, which are scored.</li>
<li>AUC is the chance that a member scores above a non-member. Null AUC is that of the same attack after membership was
shuffled, so that there is nothing to find. ACC is (TPR + TNR) / 2 at the threshold that was fitted on the known points. The
second ACC is at the best threshold of the scored points. TPR is the share of members that are found while at most {{ fpr }} of
the non-members are accused.</li>
<li>Intervals cover the choice of points, not the training of another model. Those of the table are for each attack by itself.
That of the best attack above is at level 1 - 0.05 / {{ row.attacks | length }}, because the best attack is selected on the
scored points.</li>
<li>The audit shows a leak if that interval lies above 0.5, or if some attack finds more members at {{ fpr }} FPR than a guess
would in 1 of 40 audits. The count is exact for a threshold that is selected on the scored points, and is corrected for the
choice of the attack. Without any leakage, at most about 5% of all audits show one.</li>
<li>The gap floor is the AUC of calling every correctly classified point a member. No defense that keeps the predicted labels
goes below it.</li>
<li>An audit is a lower bound on leakage. A better attack may reach more.</li>
</ul>
<p class="small">{% for name, file in row.files.items() %}{{ name }}: SHA-256 <code>{{ file.sha256 }}</code><br>{% endfor %}</p>
{% endmacro %}
{% if audits | length == 1 %}
<body>
<h1>Membership inference audit</h1>
{% for row, table, pictures in audits.values() %}{{ report(row, table, pictures) }}{% endfor %}
{% else %}
<body class="pair">
<h1>Membership inference audits</h1>
<div class="verdict">{% for sentence in sentences %}<p>{{ sentence }}</p>{% endfor %}</div>
<div class="wide"><table>
<thead><tr>{% for name in comparison.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in comparison.values %}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
<div class="columns">{% for name, (row, table, pictures) in audits.items() %}
<section>
<h2>{{ name }}</h2>
{{ report(row, table, pictures) }}
</section>{% endfor %}
</div>
{% endif %}
</body>
</html>
"""


def render(rows: dict[str, dict[str, Any]], pictures: dict[str, dict[str, bytes]], sentences: Sequence[str] = ()) -> str:
    """The HTML page of an audit, or of two audits side by side.

    rows: the row of each audit by its name. pictures: by the same names, the contents of the PNG files `roc` and `phi`.
    sentences: what stands above two audits.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    encoded = {name: {kind: b64encode(png).decode() for kind, png in pngs.items()} for name, pngs in pictures.items()}
    audits = {name: (row, attack_table(row), encoded[name]) for name, row in rows.items()}
    fpr = f"{100 * next(iter(rows.values()))['fpr']:g}%"
    return environment.from_string(PAGE).render(
        audits=audits, sentences=sentences, comparison=comparison_table(rows), fpr=fpr, style=STYLE
    )


def comparison_table(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A table of text with a column for each audit, and a line for each number that sums it up."""
    lines = {name: dict(_summary_numbers(row)) for name, row in rows.items()}
    first = next(iter(lines.values()))
    return pd.DataFrame({"": list(first), **{name: [numbers[key] for key in first] for name, numbers in lines.items()}})


def _summary_numbers(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The numbers that sum an audit up, and what they are called."""
    best = row["attacks"][row["best"]]
    yield "best attack", row["best"]
    yield "its AUC (95% interval)", "{:.3f} ({:.3f} to {:.3f})".format(best["auc"], *row["best_interval"])
    yield f"its TPR at {100 * row['fpr']:g}% FPR", percent(best["tpr_at_fpr"]["rate"])
    yield "gap floor", f"{row['gap_floor']:.3f}"
    yield "accuracy on members", percent(row["accuracy"]["members"])
    yield "accuracy on non-members", percent(row["accuracy"]["non_members"])
    yield "calibration error (ECE) on non-members", f"{row['ece']:.3f}"


def summary(row: dict[str, Any]) -> list[str]:
    """The result of the audit in sentences. The first one is the verdict."""
    best, tpr = row["attacks"][row["best"]], row["attacks"][row["best"]]["tpr_at_fpr"]
    accuracy, scored = row["accuracy"], row["scored"]
    low, high = row["best_interval"]
    rate = f"{100 * row['fpr']:g}%"
    sentences = [
        f"The best of {len(row['attacks'])} attacks, {row['best']}, tells members from non-members with AUC {best['auc']:.3f} "
        f"(95% interval, widened for the choice of the best, {low:.3f} to {high:.3f}; 0.5 is guessing).",
        f"At {rate} FPR {row['best']} finds {tpr['hits']:,} of {tpr['positives']:,} members ({percent(tpr['rate'])}; 95% "
        f"interval {percents(tpr['interval'])}) while it accuses {tpr['errors']:,} of {tpr['negatives']:,} non-members.",
        f"The gap floor is AUC {row['gap_floor']:.3f}: the model is right on {percent(accuracy['members'])} of "
        f"{scored['members']:,} members and {percent(accuracy['non_members'])} of {scored['non_members']:,} non-members, and "
        "that alone gives as much away.",
    ]
    if low <= 0.5:
        sentences.insert(1, _verdict_at_chance(row))
    return sentences


def _verdict_at_chance(row: dict[str, Any]) -> str:
    """What the audit shows where no AUC is above chance. Members that stand out may be too few to raise an AUC."""
    found, p = row["attacks"][row["best_at_fpr"]]["tpr_at_fpr"], row["best_at_fpr_p"]
    if p > (1 - LEVEL) / 2:  # the AUC's interval lies above 0.5 by chance as often, which makes 5% together
        return "That is no more than chance gives: on so many points these attacks show no leakage, nor do they rule it out."
    return (
        f"That AUC is no more than chance gives, but the model leaks some members: at {100 * row['fpr']:g}% FPR the attack "
        f"{row['best_at_fpr']} finds {found['hits']:,} of {found['positives']:,} members ({percent(found['rate'])}) while it "
        f"accuses {found['errors']:,} of {found['negatives']:,} non-members, and that is more than chance gives "
        f"(p = {p:.2g}, corrected for the choice of the attack)."
    )


def warnings(row: dict[str, Any]) -> list[str]:
    """Sentences that a reader must know before trusting the numbers."""
    sentences = pool_warnings(row["scored"]["members"], row["scored"]["non_members"], row["fpr"])
    if row["saturated"]:
        sentences.append(
            f"{row['saturated']:,} predictions have all classes but one at exactly 0, which hides what sets them apart: save "
            "logits in place of probabilities."
        )
    if row["shadows"] and row["shadows"]["left_out"]:
        sentences.append(
            f"Left out: {', '.join(row['shadows']['left_out'])}. Online attacks need for every point a shadow model that was "
            "trained on it, and LiRA two models of a point that were, or were not, trained on it."
        )
    if "lira-online" in row["attacks"] and row["shadows"]["median_in_models"] < 2:
        sentences.append(
            "Most points have fewer than two shadow models that were trained on them, so online LiRA may find less than it "
            "could: train each shadow model on half of the points."
        )
    return sentences + population_warnings(row["attacks"], row["known"]["non_members"], row["fpr"])


def attack_table(row: dict[str, Any]) -> pd.DataFrame:
    """A table of text with a line for each attack, the largest AUC first."""
    rate = f"{100 * row['fpr']:g}%"
    lines = [
        {
            "attack": name,
            **attack_columns(attack, attack["null_auc"]),
            "ACC, best threshold": f"{attack['accuracy_oracle']:.3f}",
            f"TPR @{rate} FPR": percent(attack["tpr_at_fpr"]["rate"]),
            "TPR, 95%": percents(attack["tpr_at_fpr"]["interval"]),
            "members found": "{hits:,} of {positives:,}".format(**attack["tpr_at_fpr"]),
            f"TNR @{rate} FNR": percent(attack["tnr_at_fnr"]["rate"]),
        }
        for name, attack in sorted(row["attacks"].items(), key=lambda item: -item[1]["auc"])
    ]
    return pd.DataFrame(lines)


def percent(rate: float) -> str:
    """A rate 0..1 as a percentage."""
    return f"{100 * rate:.2f}%"


def percents(interval: tuple[float, float]) -> str:
    """An interval of rates 0..1 as percentages."""
    return "{:.2f}% to {:.2f}%".format(*(100 * rate for rate in interval))
