"""One call, whole and checked, and the options it is made of."""
