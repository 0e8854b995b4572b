"""Checks of arguments, whose errors name what was expected and what came."""
