"""Questions about array libraries that the array API standard does not answer; no other package asks them."""
