"""Tests of NumPy's walker."""
