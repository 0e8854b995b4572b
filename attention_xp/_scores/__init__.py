"""Where scores lie: frame, regions, alignment of what broadcasts against them."""
