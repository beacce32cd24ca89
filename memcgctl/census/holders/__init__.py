"""Who holds the css references of a memcg; one module a kind of holder."""
