"""A share of the requests goes to a candidate as well, and nobody waits for that: copies, and what came of them."""
