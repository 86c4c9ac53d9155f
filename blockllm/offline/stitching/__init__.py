"""Chains of two models' blocks, joined by a small trained bridge where their sizes differ."""
