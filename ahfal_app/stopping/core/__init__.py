"""What all stopping rules share."""
