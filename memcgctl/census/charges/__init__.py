"""What is charged to a memcg, in groups: whose it is, and what keeps it in memory."""
