"""Runs one sweep on Ray Tune from wherever it stands, and says beforehand what it will cost. Begin with `driver`."""
