"""What trackers are built from."""
