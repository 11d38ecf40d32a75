"""The look of the watching page: a wide screen has all in sight, a telephone scrolls."""

from ahfal_app.web.colours import COLOURS

STYLE = (
    COLOURS
    + """
:root { --waits: #8a5a00; --waits-soft: #fff4dc; --fine: #1a6b3c; }
@media (prefers-color-scheme: dark) {
  :root { --waits: #ffcf70; --waits-soft: #33291a; --fine: #7fd6a4; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem 1.5rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; }
h1, h2, p, dl, dd, figure { margin: 0; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin-bottom: .5rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
header { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center; }
#about { flex-basis: 100%; color: var(--line); overflow-wrap: anywhere; }
#condition { padding: .1rem .75rem; border-radius: 1rem; border: 1px solid currentColor;
  font-weight: 600; color: var(--accent); }
#condition:empty { display: none; }
.waiting, #condition.waiting { color: var(--waits); }
.finished, #condition.finished { color: var(--fine); }
.wrong, #condition.wrong { color: var(--wrong); }
#reason, #trouble { overflow-wrap: anywhere; color: var(--wrong); font-weight: 600;
  border-left: .3rem solid currentColor; padding: .25rem .75rem; }
#trouble { margin-bottom: 1rem; }
progress { width: 100%; height: .6rem; accent-color: var(--accent); }
main { display: grid; gap: 1.25rem; grid-template-columns: minmax(0, 1fr); }
#facts { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); }
#facts div { background: var(--soft); border-radius: .5rem; padding: .6rem .9rem; }
#facts div.waiting { background: var(--waits-soft); }
dt { font-size: .85rem; color: var(--line); }
dd { font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
dd small { display: block; font-size: .85rem; font-weight: 400; color: var(--ink); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-size: .85rem; font-weight: 400; color: var(--line); }
th, td { padding: .45rem .75rem .45rem 0; vertical-align: baseline;
  border-bottom: 1px solid var(--faint); }
.number { text-align: right; padding-right: 1.5rem; }
td { white-space: nowrap; }
td:first-child, td.why { white-space: normal; }
#sites, #runs { overflow-x: auto; }
td:first-child { font-weight: 600; overflow-wrap: anywhere; }
td.waits { color: var(--waits); font-weight: 600; }
td.why { font-weight: 400; color: var(--wrong); overflow-wrap: anywhere; padding-left: 1rem; }
tr:has(+ tr > .why) > td { border-bottom: 0; }
tr[aria-current] > td { background: var(--soft); }
#runs { margin-bottom: 1.5rem; max-height: 45vh; overflow-y: auto; }
#runs :is(th, td):first-child { padding-left: .5rem; }
#curve figcaption { font-size: .9rem; color: var(--line); margin-top: .25rem; }
#plot { height: 18rem; }
#plot svg { display: block; width: 100%; height: 100%; }
#plot text { fill: var(--line); font-size: .85rem; }
#plot .grid { stroke: var(--faint); stroke-width: 1; }
#plot .line { fill: none; stroke: var(--accent); stroke-width: 2.5; stroke-linejoin: round; }
#plot circle { fill: var(--accent); }
#plot .value { fill: var(--ink); font-weight: 600; }
#notes { margin: 0; padding: 0; list-style: none; color: var(--line); font-size: .9rem; }
#notes:empty { display: none; }
footer { margin-top: 1.25rem; font-size: .85rem; color: var(--line); }

@media (min-width: 80rem) {
  main { grid-template-columns: minmax(0, 1fr) 25rem; column-gap: 2.5rem; }
  header, #reason, progress, #facts, #notes { grid-column: 1 / -1; }
}
@media (max-width: 46rem) {
  body { padding: .75rem; }
  main { gap: .9rem; }
  #facts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  #facts div { padding: .5rem .7rem; } dd { font-size: 1.05rem; }
  #plot { height: 14rem; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody, tr, td { display: block; } #runs td { padding-inline: .5rem; }
  tr { padding: .6rem 0; border-bottom: 1px solid var(--faint); }
  tr:has(+ tr > .why) { border-bottom: 0; padding-bottom: 0; }
  tr:has(> .why) { padding-top: .2rem; }
  td, td.number { display: flex; justify-content: space-between; gap: 1rem; padding: .1rem 0;
    border: 0; text-align: right; }
  td:first-child { font-size: 1.05rem; text-align: left; }
  td.why { display: block; text-align: left; font-size: .9rem; }
  td[data-label]::before { content: attr(data-label); font-weight: 400; color: var(--line);
    text-align: left; flex: none; }
  td.none { display: none; }
}
"""
)
