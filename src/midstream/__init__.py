"""Midstream: zero-downtime deployment on one's own Linux servers."""

__version__ = "0.1.0"
