"""The server: cycles, rounds, purchases, statistics, checkpoints."""
