"""Seeds, and draws that hang on a position alone."""
