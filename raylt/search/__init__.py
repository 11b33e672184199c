"""Proposes allocations with Optuna, guided by the pilots' similarity. Begin with `proposal`."""
