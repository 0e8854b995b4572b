"""Tests of the loops over tiles."""
