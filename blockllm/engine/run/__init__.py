"""Batches through their spans: executors, what they make of a batch, and what is sampled."""
