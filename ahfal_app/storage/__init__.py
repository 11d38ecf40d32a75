"""Bytes that survive: SQLite and files."""
