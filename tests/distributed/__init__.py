"""Tests of attention on sharded arrays."""
