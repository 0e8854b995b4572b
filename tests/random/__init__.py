"""Tests of random draws."""
