"""All that crosses the wire, and nothing else."""
