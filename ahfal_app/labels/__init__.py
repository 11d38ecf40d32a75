"""Labels, their ledger, and how they come from people and go to them."""
