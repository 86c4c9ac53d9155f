"""Which layers of different models may stand in for each other, and what is lost by it."""
