"""The one door to questions about array libraries that the array API standard does not answer."""
