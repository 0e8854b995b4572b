"""``python -m attention_xp``: a module for each of its commands, and what they share."""
