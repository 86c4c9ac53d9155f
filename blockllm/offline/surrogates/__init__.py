"""Pruned stand-ins of decoder layers, and the draft chains that speculation makes of them."""
