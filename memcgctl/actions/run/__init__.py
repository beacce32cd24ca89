"""Carries out a plan: lock, guards, journal, what is measured before and after."""
