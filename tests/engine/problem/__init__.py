"""Tests of calls, whole and checked."""
