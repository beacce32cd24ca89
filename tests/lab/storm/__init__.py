"""Zombies composed at random: what plans promise, held against what then happens.

``compose`` makes a scene of a seed, ``play`` (in the guest) plays it and has memcgctl
act, ``judge`` compares what was promised with what the kernel counts, ``run`` does it
over and over.
"""
