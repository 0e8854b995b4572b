"""Tests of where scores lie, and of rules."""
