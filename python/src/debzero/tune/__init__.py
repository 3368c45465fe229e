"""`debzero tune`: a search for the fastest micro-batch and sharding that fit, by short measured trials."""
