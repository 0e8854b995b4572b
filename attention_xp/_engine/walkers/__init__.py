"""The loops over tiles, one folder for each library."""
