"""What query strategies are built from: contracts, the checked call, budgets, scores."""
