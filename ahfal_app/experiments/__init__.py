"""Experiments: files that describe grids of runs, and what runs and reports them."""
