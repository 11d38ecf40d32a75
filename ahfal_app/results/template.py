"""The page of a run's report: one file, no script, nothing loaded from elsewhere.

It lives in a Python file because Flower's app bundle leaves out files of other kinds.
"""

from __future__ import annotations

STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d5dae0; --panel: #f6f8fa; --mark: #0072b2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0; }
.soft { color: var(--soft); }
.banner { margin: 1rem 0; padding: .7rem 1rem; border: 2px solid #b35900; border-left-width: 10px;
  background: #fff6e5; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr));
  gap: .75rem; margin: 1.25rem 0 0; }
@media (min-width: 800px) { .facts { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
.facts div { background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem .8rem; }
.facts dt { font-size: .82rem; color: var(--soft); }
.facts dd { margin: 0; font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
.facts small { display: block; font-size: .78rem; font-weight: 400; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 2rem 2.5rem; align-items: start; }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: .4rem; }
figcaption p { font-size: .88rem; color: var(--soft); }
figure svg { display: block; width: 100%; max-width: 640px; height: auto; }
figure svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; vertical-align: bottom; }
th.number, td.number { text-align: right; padding: .3rem .45rem; }
td.number, tbody th { white-space: nowrap; }
thead th:first-child, tbody th, tfoot td:first-child { padding-left: 0; }
tbody th { font-weight: 400; }
tfoot th, tfoot td { font-weight: 600; }
td.text { overflow-wrap: anywhere; min-width: 9rem; }
th.number + th:not(.number), td.number + td.text { padding-left: .9rem; }
details { margin-top: .5rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--soft); }
code { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace; font-size: .92em;
  overflow-wrap: anywhere; }
@media print {
  main { max-width: none; padding: 0; }
  figure, .facts div, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th.number, td.number { padding: .2rem .25rem; }
}
"""

PAGE = """
{%- macro grid(table) -%}
<div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}">
<table>
<thead><tr>
{%- for heading in table.headings %}
<th scope="col"{% if loop.index0 in table.numbers %} class="number"{% endif %}>{{ heading }}</th>
{%- endfor %}
</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>
{%- for cell in row %}
{%- if loop.first %}
<th scope="row"{% if 0 in table.numbers %} class="number"{% endif %}>{{ cell }}</th>
{%- else %}
<td class="{{ 'number' if loop.index0 in table.numbers else 'text' }}">{{ cell }}</td>
{%- endif %}
{%- endfor %}</tr>
{%- endfor %}
</tbody>
{%- if table.total %}
<tfoot><tr>
{%- for cell in table.total %}
<td{% if loop.index0 in table.numbers %} class="number"{% endif %}>{{ cell }}</td>
{%- endfor %}
</tr></tfoot>
{%- endif %}
</table>
</div>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
{%- if banner %}
<p class="banner" role="status"><strong>{{ banner }}</strong></p>
{%- endif %}
<dl class="facts">
{%- for fact in facts %}
<div><dt>{{ fact.name }}</dt><dd>{{ fact.value }}
{%- if fact.note %} <small>{{ fact.note }}</small>{% endif %}</dd></div>
{%- endfor %}
</dl>
</header>
<section aria-labelledby="figures">
<h2 id="figures">Figures</h2>
{%- if not panels %}
<p>There are no figures before the first round is done.</p>
{%- endif %}
<div class="figures">
{%- for panel in panels %}
<figure>
<figcaption><h3>{{ panel.chart.title }}</h3><p>{{ panel.caption }}</p></figcaption>
{{ panel.chart.svg | safe }}
{%- if panel.table %}
<details><summary>The numbers</summary>
{{ grid(panel.table) }}
</details>
{%- endif %}
</figure>
{%- endfor %}
</div>
</section>
{%- for table in tables %}
<section aria-labelledby="table-{{ loop.index }}">
<h2 id="table-{{ loop.index }}">{{ table.title }}</h2>
{%- if table.note %}
<p class="soft">{{ table.note }}</p>
{%- endif %}
{{ grid(table) }}
</section>
{%- endfor %}
</main>
</body>
</html>
"""
