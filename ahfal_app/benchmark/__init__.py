"""The benchmark: a fixed protocol, who takes part, and the leaderboard."""
