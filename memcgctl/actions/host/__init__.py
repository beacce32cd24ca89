"""What the actions stand on: the machine, its files, processes and system calls."""
