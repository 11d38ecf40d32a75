"""The watching page: HTML as text, since Flower's bundle has .py files only.

All that is of a run is put in by the script, as text.
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AHFAL</title>
<link rel="stylesheet" href="/page.css">
<script src="/page.js" defer></script>
</head>
<body>
<p id="trouble" role="alert" hidden></p>
<section id="runs" aria-labelledby="runs-title" hidden>
<h2 id="runs-title">Runs</h2>
<table>
<thead><tr><th scope="col">Run</th><th scope="col">Condition</th><th scope="col">Cycle</th>
<th scope="col">Time left</th><th scope="col" class="number">Labels</th>
<th scope="col" class="number">Missing</th><th scope="col" class="number">Accuracy</th></tr></thead>
<tbody></tbody>
</table>
</section>
<main>
<header>
<h1 id="name">&nbsp;</h1>
<p id="condition"></p>
<p id="about"></p>
</header>
<p id="reason" hidden></p>
<progress id="progress" value="0" max="1" aria-label="How far the run is"></progress>
<dl id="facts"></dl>
<section id="sites" aria-labelledby="sites-title">
<h2 id="sites-title">Sites</h2>
<table>
<thead><tr><th scope="col">Site</th><th scope="col">Last seen</th>
<th scope="col" class="number">Wanted</th><th scope="col" class="number">Given</th>
<th scope="col" class="number">Missing</th><th scope="col">Since</th>
<th scope="col">Waiting longest</th><th scope="col" class="number">Failures</th>
<th scope="col">Version</th></tr></thead>
<tbody></tbody>
</table>
<p id="no-sites" hidden>No site is known yet.</p>
</section>
<section id="curve" aria-labelledby="curve-title">
<h2 id="curve-title">Learning curve</h2>
<figure><div id="plot"></div><figcaption id="curve-text"></figcaption></figure>
</section>
<ul id="notes"></ul>
</main>
<footer><p id="fresh" role="status"></p></footer>
<noscript><p>This page needs JavaScript. <code>ahfal status</code> tells the same.</p></noscript>
</body>
</html>
"""
