"""Engines: what runs the clients of a simulation."""
