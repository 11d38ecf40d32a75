"""What known data sets are made of."""
