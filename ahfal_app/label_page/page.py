"""The labelling page: HTML as text, since Flower's bundle has .py files only."""

from __future__ import annotations

import html
import json
import string

from ahfal_app.label_page.texts import TEXTS

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="$language">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="stylesheet" href="/page.css">
<script type="application/json" id="texts">$texts</script>
<script src="/page.js" defer></script>
</head>
<body>
<header>
<h1>$title</h1>
<p id="who"></p>
<div id="queues" role="group" hidden>
<button type="button" id="queue-read" aria-pressed="true">$queue_read</button>
<button type="button" id="queue-settle" aria-pressed="false">$queue_settle</button>
</div>
<div id="how-far">
<span id="unsaved" role="status"></span>
<label for="progress" id="count">$loading</label>
<progress id="progress" value="0" max="1"></progress>
</div>
</header>
<main>
<figure id="shown">
<div id="view">
<p id="waiting" role="status">$loading</p>
<p id="empty" hidden></p>
</div>
<figcaption id="caption" hidden></figcaption>
</figure>
<section id="panel" aria-labelledby="question">
<h2 id="question">$question</h2>
<p id="link" hidden><a target="_blank" rel="noopener noreferrer"></a></p>
<p id="guess" hidden></p>
<ul id="readings" hidden></ul>
<p id="given" hidden></p>
<div id="classes" role="group" aria-labelledby="question"></div>
<div id="others">
<button type="button" id="skip" aria-keyshortcuts="s"><span>$skip</span><kbd>s</kbd></button>
<button type="button" id="unsure" aria-pressed="false" aria-keyshortcuts="?"
><span>$unsure</span><kbd>?</kbd></button>
<label id="remark"><span>$comment <kbd>#</kbd></span>
<input id="comment" type="text" maxlength="500" autocomplete="off" placeholder="$comment"></label>
<button type="button" id="undo" aria-keyshortcuts="Backspace"
><span>$undo</span><kbd title="Backspace">⌫</kbd></button>
<button type="button" id="own" aria-keyshortcuts="ArrowLeft"
><span>$own</span><kbd>←</kbd></button>
</div>
<div id="steps" hidden>
<button type="button" id="earlier" aria-keyshortcuts="ArrowLeft"
><span>$earlier</span><kbd>←</kbd></button>
<button type="button" id="later" aria-keyshortcuts="ArrowRight"
><span>$later</span><kbd>→</kbd></button>
<button type="button" id="back" aria-keyshortcuts="Escape"
><span>$back</span><kbd>Esc</kbd></button>
</div>
</section>
<div id="tools" role="group" aria-label="$tools">
<button type="button" id="zoom-in" aria-label="$zoom_in" aria-keyshortcuts="+"
><span>$zoom_in</span><kbd>+</kbd></button>
<button type="button" id="zoom-out" aria-label="$zoom_out" aria-keyshortcuts="-"
><span>$zoom_out</span><kbd>−</kbd></button>
<button type="button" id="zoom-fit" aria-label="$zoom_fit" aria-keyshortcuts="="
><span>$zoom_fit</span><kbd>=</kbd></button>
<button type="button" id="full-screen" aria-label="$full_screen" aria-pressed="false"
 aria-keyshortcuts="*"><span>$full_screen</span><kbd>*</kbd></button>
</div>
</main>
<footer>
<p id="note"></p>
<p id="said" role="status" aria-live="polite"></p>
</footer>
<noscript><p>$needs_script</p></noscript>
</body>
</html>
""")


def page_in(language: str) -> str:
    """Return the page in a language: a key of `TEXTS`."""
    texts = TEXTS[language]
    # `<` would end the element that it stands in.
    embedded = json.dumps(texts, ensure_ascii=False).replace("<", "\\u003c")
    escaped = {key: html.escape(text) for key, text in texts.items()}
    return _PAGE.substitute(escaped, language=language, texts=embedded)
