"""Tests of the engine behind the public functions."""
