"""Greedy coresets of rows: the public name of `search.coreset`."""

from .search.coreset import greedy_coreset

__all__ = ["greedy_coreset"]
