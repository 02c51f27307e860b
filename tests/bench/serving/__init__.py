"""How Hone serves, beside others that serve: the same model, the same client, one pinned core, alternating repeats."""
