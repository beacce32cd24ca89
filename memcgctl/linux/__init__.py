"""Linux's own structures, read in bulk; knows no memcg."""
