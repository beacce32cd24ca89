"""Reads how a kernel stores memcgs, charges and references into the model."""
