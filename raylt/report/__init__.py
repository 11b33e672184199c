"""Turns a ledger into one results document, tables, figures and an HTML page. Begin with `document`."""
