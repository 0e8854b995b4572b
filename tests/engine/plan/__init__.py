"""Tests of which tiles are visited."""
