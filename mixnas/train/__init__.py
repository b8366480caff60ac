"""Training: of the supernet, and (later) of what was found. Knows nothing of searching."""
