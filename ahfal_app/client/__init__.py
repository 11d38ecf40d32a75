"""A client, without Flower: its state, its training, its choice, and who labels for it."""
