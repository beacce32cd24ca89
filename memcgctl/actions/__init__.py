"""The interfaces of a running kernel by which memory is moved: the only writer."""
