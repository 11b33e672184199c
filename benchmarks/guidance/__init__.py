"""Does similarity guide a search? What `benchmarks/search.py` is made of."""
