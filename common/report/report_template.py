"""The Jinja template of report.html, which report_page.py fills. What is marked `safe` was escaped by table_html.py."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Diffence: what these runs show</title>
<style>{{ style|safe }}
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--back); padding: .4rem .8rem; z-index: 1; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem; margin: 1.2rem 0; }
.card { background: var(--tint); border-top: 4px solid var(--accent); padding: .9rem 1.1rem; }
.card h3 { margin: 0 0 .4rem; }
.big { font-size: 2rem; font-weight: 650; line-height: 1.2; margin: .2rem 0; font-variant-numeric: tabular-nums; }
.card p { margin: .25rem 0; }
tr.paper > * { font-style: italic; color: var(--soft); }
.text td, .text th { text-align: left; white-space: normal; vertical-align: top; min-width: 4.5rem; }
figure { margin: 1rem 0; }
details { border: 1px solid var(--line); border-radius: 4px; margin: .6rem 0; padding: 0 .9rem; }
summary { cursor: pointer; padding: .5rem 0; }
details > :last-child { margin-bottom: .9rem; }
.holds { color: var(--good); font-weight: 600; } .fails { color: var(--bad); font-weight: 600; } .part { color: var(--warn);
  font-weight: 600; } .open { color: var(--soft); font-weight: 600; }
.notes { padding-left: 1.1rem; } .notes li { color: var(--soft); font-size: .88rem; }
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>Diffence: what these runs show</h1>
<p class="small">Y. Peng, A. Naseh, A. Houmansadr, "DIFFENCE: Fencing Membership Privacy With Diffusion Models", NDSS 2025,
reproduced. A membership inference attack asks which images a classifier was trained on. Diffence re-generates each image before
the classifier sees it. Every number of ours on this page is computed from {{ rows }} stored rows.</p>
</header>
<nav aria-label="Contents"><ul>
{% for anchor, title in contents %}<li><a href="#{{ anchor }}">{{ title }}</a></li>
{% endfor %}</ul></nav>
<main id="main" tabindex="-1">
<h2 id="headline">In short</h2>
{% if headlines %}<div class="cards">
{% for card in headlines %}<section class="card"><h3>{{ card.title }}</h3>
<p>Best attack without Diffence, then in {{ card.scenario }} (AUC):</p>
<p class="big">{{ card.without }} → {{ card.protected }}</p>
{% for line in card.lines %}<p>{{ line }}</p>
{% endfor %}</section>
{% endfor %}</div>
{% else %}<p>There is no evaluation of the undefended classifier with Diffence yet.</p>{% endif %}
<p>Undefended classifier, {{ edition }}. AUC is the chance that the attack scores a member above a non-member; 0.5 is guessing.
Best is the best of the paper's five attacks. The floor is what right and wrong labels alone give away; Diffence keeps every
label, so it cannot go below.</p>
<p class="small">These five are not the strongest attacks there are, and an attack is a lower bound on what leaks.</p>
{% if claims %}
<h2 id="claims">The paper's claims</h2>
<p>Each verdict follows from the rows by the stated test: a claim <em>holds</em> where every setting meets the test, <em>in
part</em> where some do, <em>not here</em> where none does.</p>
{% for claim in claims %}<details><summary>{{ loop.index }}. {{ claim.title }}:
<span class="{{ claim.kind }}">{{ claim.verdict }}</span></summary>
<p class="small">{{ claim.section }}</p>
<p>Test: {{ claim.test }}</p>
{% if claim.evidence %}<ul>{% for one in claim.evidence %}<li>{{ one.where }}: {{ one.figures }}. <b>{{ "Met" if one.holds else
"Not met" }}.</b></li>{% endfor %}</ul>{% else %}<p>{{ claim.missing|safe }}</p>{% endif %}
{% if claim.remark %}<p>{{ claim.remark }}</p>{% endif %}
</details>
{% endfor %}{% endif %}
{% if tables %}
<h2 id="tables">Tables</h2>
<p>Lines in italics are the paper's. A letter in brackets leads to the command that makes the missing number. The interval of a
number is shown when you point at it, and is in the CSV file.</p>
{% for group in tables %}
<h3 id="{{ group.anchor }}">{{ group.label }}</h3>
{% for table in group.tables %}{% if not loop.first %}<details><summary>{{ group.label }}, {{ table.edition }}</summary>
{% endif %}
{% if table.html %}<p class="small">{{ table.title }}; {{ table.edition }}.</p>
<div class="wide" tabindex="0" role="region" aria-label="{{ group.label }}, {{ table.edition }}">
{{ table.html|safe }}</div>
<ul class="notes">{{ table.notes|safe }}</ul>
{% else %}<p>{{ table.title }}. {{ table.missing|safe }}</p>{% endif %}
{% if not loop.first %}</details>{% endif %}
{% endfor %}{% endfor %}{% endif %}
{% if figures %}
<h2 id="figures">Figures</h2>
{% for figure in figures %}
<h3 id="{{ figure.anchor }}">{{ figure.label }}</h3>
{% if figure.png %}<figure><img alt="{{ figure.title }}. {{ figure.plain }}" src="data:image/png;base64,{{ figure.png }}"
width="{{ figure.width }}" height="{{ figure.height }}" loading="lazy">
<figcaption><b>{{ figure.title }}.</b> {{ figure.caption|safe }} ({{ figure.edition }})</figcaption></figure>
{% if figure.numbers %}<details><summary>{{ figure.label }} in numbers
{%- if not figure.own %}, beside the paper's text{% endif %}</summary>
<div class="wide" tabindex="0" role="region" aria-label="{{ figure.label }} in numbers">
{{ figure.numbers|safe }}</div>
<ul class="notes">{{ figure.notes|safe }}</ul></details>
{% endif %}{% else %}<p>{{ figure.title }}. {{ figure.missing|safe }}</p>{% endif %}
{% endfor %}{% endif %}
<h2 id="runs">What was run on what</h2>
<div class="wide text" tabindex="0" role="region" aria-label="Runs"><table>
<thead><tr>{% for name in runs.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for line in runs.values %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h2 id="rerun">Run it again</h2>
<p>From the root of the repository, at the commit of the row:</p>
<ul>
{% for command in commands %}<li><code>{{ command }}</code></li>
{% endfor %}</ul>
<p>Jobs that are done are skipped, and a stopped command continues. <code>docs/reproduce.md</code> has every option.</p>
</main>
</body>
</html>
"""
