"""What aggregations are built from, and what runs them over a run's rounds."""
