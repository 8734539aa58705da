"""Exact nearest neighbours of rows: the public name of `search.neighbors`."""

from .search.neighbors import nearest

__all__ = ["nearest"]
