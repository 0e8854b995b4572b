"""Passes over a tile in compiled loops, where numba is installed: each reads and writes the tile once."""
