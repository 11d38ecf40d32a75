"""Data sets that are known by name; each module is one, named after its file."""
