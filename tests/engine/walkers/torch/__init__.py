"""Tests of torch's walker."""
