"""The look of the labelling page.

The page is as high as the screen and does not scroll: whatever is pressed, the image stays in
sight. Where there are too many classes, their list scrolls.
"""

from ahfal_app.web.colours import COLOURS

STYLE = (
    COLOURS
    + """
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html, body { height: 100%; }
body { margin: 0 auto; max-width: 110rem; height: 100vh; height: 100dvh; display: grid;
  grid-template-rows: auto minmax(0, 1fr) auto; gap: .75rem; padding: .75rem 1rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; }
h1, h2, p { margin: 0; } h1, h2 { font-size: 1.1rem; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: center;
  border-bottom: 1px solid var(--faint); padding-bottom: .6rem; }
#who { margin-right: auto; overflow-wrap: anywhere; }
#queues { display: flex; gap: .5rem; }
#how-far { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center; }
#unsaved { font-weight: 600; }
#unsaved:empty { display: none; }
progress { width: 12rem; max-width: 100%; height: .6rem; accent-color: var(--accent); }

main { display: grid; gap: .75rem 1.25rem; min-height: 0;
  grid-template: "stage panel" minmax(0, 1fr) "tools panel" auto
    / minmax(0, 1fr) minmax(17rem, 26rem); }
figure { grid-area: stage; margin: 0; min-height: 0; display: grid;
  grid-template-rows: minmax(0, 1fr) auto; background: var(--stage);
  border: 1px solid var(--faint); border-radius: .5rem; overflow: hidden; }
#view { position: relative; min-height: 0; min-width: 0; display: grid; place-items: center;
  overflow: hidden; padding: .75rem; }
#view img { grid-area: 1 / 1; display: block; width: 100%; height: 100%; min-height: 0;
  object-fit: contain; user-select: none; transform-origin: center; }
#view img.small { image-rendering: pixelated; max-width: 32rem; max-height: min(100%, 32rem); }
#view.zoomed { cursor: grab; touch-action: none; }
#view.held { cursor: grabbing; }
#waiting, #empty { grid-area: 1 / 1; padding: 1rem; text-align: center; max-width: 36rem; }
figcaption { padding: .4rem .75rem; text-align: center; overflow-wrap: anywhere;
  background: var(--soft); border-top: 1px solid var(--faint); }
#tools { grid-area: tools; display: flex; flex-wrap: wrap; gap: .5rem; justify-content: center; }

#panel { grid-area: panel; min-height: 0; display: flex; flex-direction: column; gap: .75rem;
  overflow-y: auto; padding: 3px; margin: -3px; }
#panel > * { flex: none; }
#panel > #classes { flex: 0 1 auto; }
#classes { display: grid; gap: .5rem; overflow-y: auto; min-height: 3.25rem; padding: 3px;
  margin: -3px; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  grid-auto-rows: max-content; align-content: start; }
#others { display: grid; gap: .5rem; grid-template-columns: repeat(2, minmax(0, 1fr));
  padding-top: .75rem; border-top: 1px solid var(--faint); }
#remark { display: flex; flex-direction: column; gap: .25rem; grid-column: 1 / -1; }
#remark span { display: flex; justify-content: space-between; align-items: center; }
#readings { margin: 0; padding: .5rem .75rem; list-style: none; background: var(--soft);
  border-left: .25rem solid var(--accent); border-radius: .25rem; max-height: 33vh;
  overflow-y: auto; overflow-wrap: anywhere; }
/* However long one's comment is, what the others say stays in sight. */
#readings q { display: block; opacity: .85; max-height: 4.4em; overflow-y: auto; }
@media (min-width: 46.01rem) { #comment::placeholder { color: transparent; } }
#link { max-height: 4.4em; overflow-y: auto; overflow-wrap: anywhere; padding: 3px; margin: -3px; }
#link a { color: inherit; }
#given { padding: .5rem .75rem; background: var(--soft); border-left: .25rem solid var(--accent);
  border-radius: .25rem; max-height: 33vh; overflow-y: auto; overflow-wrap: anywhere;
  white-space: pre-line; }
#steps { display: grid; gap: .5rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
#steps #back { grid-column: 1 / -1; }

button, input { font: inherit; color: var(--ink); background: var(--soft);
  border: 1px solid var(--line); border-radius: .4rem; min-height: 2.75rem;
  padding: .4rem .75rem; min-width: 0; }
input { width: 100%; background: var(--paper); }
button { display: flex; justify-content: space-between; align-items: center; gap: .5rem;
  text-align: left; overflow-wrap: anywhere; cursor: pointer; }
button > span { min-width: 0; }
#tools button { min-height: 2.25rem; padding: .2rem .6rem; }
#queues button { min-height: 2rem; padding: .1rem .6rem; }
button:hover:not([aria-disabled="true"]) { border-color: var(--accent);
  box-shadow: inset 0 0 0 1px var(--accent); }
button[aria-pressed="true"] { background: var(--accent); color: var(--on-accent);
  border-color: var(--accent); }
button[aria-disabled="true"] { opacity: .5; cursor: default; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
kbd { font: .8em ui-monospace, monospace; border: 1px solid currentColor; opacity: .8;
  border-radius: .25rem; padding: 0 .35em; flex: none; }
footer { min-height: 1.5em; overflow-wrap: anywhere; }
#said.wrong { font-weight: 600; color: var(--wrong); border-left: .3rem solid currentColor;
  padding-left: .5rem; }

@media (max-height: 32rem) {
  body { gap: .4rem; padding: .4rem .75rem; }
  header { padding-bottom: .25rem; }
  main { grid-template-rows: minmax(0, 1fr) auto; }
  #panel { gap: .5rem; }
  #panel > #classes { flex: none; max-height: 55vh; }
  #view { padding: .25rem; }
  figcaption { font-size: .8rem; padding: .1rem .5rem; }
  #tools { gap: .3rem; } #tools kbd { display: none; }
  #tools button { min-height: 1.9rem; padding: .1rem .4rem; font-size: .8rem; }
}
@media (max-width: 46rem) and (orientation: portrait) {
  body { gap: .5rem; padding: .5rem; }
  header { gap: .1rem .75rem; padding-bottom: .35rem; }
  #how-far { flex-basis: 100%; flex-wrap: nowrap; } progress { flex: 1; }
  main { gap: .5rem; grid-template: "stage" minmax(9rem, 1fr) "tools" auto
    "panel" fit-content(58%) / minmax(0, 1fr); }
  #view { padding: .25rem; }
  #panel { gap: .5rem; }
  #classes, #others { gap: .4rem; }
  #classes { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
  #others { padding-top: .5rem; }
  #remark span, #panel kbd { display: none; }
  #zoom-in span, #zoom-out span, #zoom-fit kbd, #full-screen kbd { display: none; }
  #readings { max-height: 9rem; padding: .25rem .5rem; font-size: .9rem; }
  #readings q { max-height: 2.9em; }
  #given { max-height: 7rem; padding: .25rem .5rem; font-size: .9rem; }
  figcaption { font-size: .85rem; padding: .2rem .5rem; }
}
"""
)
