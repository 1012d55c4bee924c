"""The report: one HTML file that shows what was flagged and why, and needs nothing from anywhere else."""

from causalmad.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
