"""Several clients of one process train as one tensor program; see docs/client-batching.md."""
