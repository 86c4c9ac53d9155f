"""Full fine-tunes as the base's blocks and a small lossy delta: encode, choose, measure, add."""
