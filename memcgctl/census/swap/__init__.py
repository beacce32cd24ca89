"""Which swap entries a memcg is charged for, and who would read them in again."""
