"""What happens between a call and its result: a checked problem, a choice, a kernel."""
