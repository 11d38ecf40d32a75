"""What a federation of real sites needs before it runs: certificates, keys, and a check."""
