"""A run's folder, and what people read of it: progress, summary, figures, report."""
