"""From terms to scores: when a probe is known, which route that leaves, and what the sums are checked by."""
