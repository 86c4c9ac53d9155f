"""The device: which one, its memory, copies to and from it."""
