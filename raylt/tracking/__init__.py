"""Mirrors the ledger in MLflow, and serves its page. Begin with `recorder`."""
