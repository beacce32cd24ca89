"""The systemd units that ``memcgctl systemd-units`` prints, as files."""
