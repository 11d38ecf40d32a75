"""What local updates are built from."""
