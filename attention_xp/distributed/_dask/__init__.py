"""Attention on arrays of Dask: a graph of blocks of the scores, and a tree in which they are merged."""
