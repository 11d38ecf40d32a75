"""The colours of all pages, by day and by night."""

COLOURS = """
:root { color-scheme: light dark; --ink: #16202b; --paper: #ffffff; --soft: #eef1f4;
  --stage: #e3e8ed; --line: #66727f; --faint: #c9d1d9; --accent: #0b57a4; --on-accent: #ffffff;
  --wrong: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eef1f4; --paper: #14181d; --soft: #232a32; --stage: #0c0f12; --line: #97a3b0;
    --faint: #3a444f; --accent: #8cc2ff; --on-accent: #14181d; --wrong: #ff8a80; } }
"""
