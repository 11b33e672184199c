"""The lottery-ticket search: masks, scores, allocations, rounds. Runs without Ray, Optuna or MLflow."""
