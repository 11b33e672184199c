"""raylt: how far can a DDPM be pruned, and where?"""

__version__ = "0.1.0"
