"""A browser for the head view."""

from tests._browser import browser

__all__ = ["browser"]
