"""lore: a notebook-driven reproduction kit of the paper LORE (arXiv 2512.03025)."""

__version__ = "0.1.0"
