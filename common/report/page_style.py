"""The style of the project's HTML pages: light and dark, from a phone to a desktop. Pages load nothing and run no script."""

STYLE = """
:root { color-scheme: light dark; --text: #1c2530; --soft: #55606e; --back: #ffffff; --tint: #f1f6fb; --line: #dfe5ec;
  --strong: #9aa7b5; --accent: #1f5fa8; --warn: #8a5a0c; --warn-back: #fdf6e7; --good: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e9ef; --soft: #a5b0bd; --back: #14181d; --tint: #1d2630; --line: #303a45; --strong: #5c6977;
    --accent: #7db4f0; --warn: #e0b050; --warn-back: #2b2415; --good: #62c795; --bad: #f2908a; }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 62rem; margin: 2rem auto;
  padding: 0 1.25rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p, li { max-width: 50rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 2px; }
.small, figcaption, caption { color: var(--soft); font-size: .88rem; }
.verdict, .warnings { border-left: 4px solid var(--accent); background: var(--tint); padding: .7rem 1.1rem;
  margin: 1.2rem 0; }
.warnings { border-color: var(--warn); background: var(--warn-back); }
.verdict p, .warnings p { margin: .3rem 0; max-width: none; }
.verdict p:first-child { font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .36rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody th { font-weight: 400; }
thead th { font-weight: 600; border-bottom: 2px solid var(--strong); vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .head { text-align: left; }
th[scope=colgroup] { text-align: center; }
tr.best td { background: var(--tint); font-weight: 600; }
img { max-width: 100%; height: auto; background: #ffffff; }
code { font-size: .92em; overflow-wrap: anywhere; }
"""
