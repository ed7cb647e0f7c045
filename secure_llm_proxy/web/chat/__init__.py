"""`POST /chat`, the origin's own door: a prompt in, an answer with its evidence out."""
