"""What is done on one tile of the scores, written once for every library and walker."""
