"""What networks share: their base, batch norm, initial weights, and how they are found."""
