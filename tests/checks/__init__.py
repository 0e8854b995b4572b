"""Tests of the checks of arguments."""
