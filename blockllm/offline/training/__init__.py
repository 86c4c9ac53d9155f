"""Short trainings: a differentiable twin of the served layers, and a loop that can be resumed."""
