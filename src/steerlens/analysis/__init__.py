"""What the tables of a run say: factors, payoff, roles, summaries."""
