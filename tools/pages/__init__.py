"""Writes, wraps and checks what the documentation shows."""
