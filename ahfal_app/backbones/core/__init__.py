"""What backbones share: their contract, weights, and where they come from."""
