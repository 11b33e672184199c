"""One lottery-ticket search: masks, allocations, prune-rewind-train rounds, similarity of tickets. Begin with `find`."""
