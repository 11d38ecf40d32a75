"""Data sets, their partition over clients, and their copy on the training device."""
