"""Tests of what is done on a tile."""
