"""Processes that run foreign content within limits of memory and time; they know nothing of it."""
