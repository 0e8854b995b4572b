"""Tests of rotary position embedding."""
