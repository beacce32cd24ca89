"""Decides what becomes of what offline memcgs hold: pure functions of the model."""
