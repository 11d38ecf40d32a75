"""Local training: steps, objectives, and what a client of a run trains with."""
