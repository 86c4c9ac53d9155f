"""Tensors from packs to the device."""
