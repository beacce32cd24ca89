"""memcgctl: list, explain and free zombie memory cgroups."""

__version__ = "0.1.0"
