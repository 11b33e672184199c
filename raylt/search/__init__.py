"""The search over allocations: proposals from an Optuna study, guided by the similarity of pilots."""
