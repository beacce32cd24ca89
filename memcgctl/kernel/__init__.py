"""Opens a kernel, live or dumped, and reads its memory; knows nothing of memcgs."""
