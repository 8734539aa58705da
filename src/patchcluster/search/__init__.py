"""Nearest rows, exactly and nearly, and greedy coresets: faiss on the CPU, torch elsewhere.

neighbors.py  exact search; public as patchcluster.neighbors
row_index.py  the search of the default method
coreset.py    greedy coresets; public as patchcluster.coreset
"""
