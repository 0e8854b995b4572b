"""Tests of JAX's walker."""
