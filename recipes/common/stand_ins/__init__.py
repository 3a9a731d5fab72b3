"""Models without a hub: the embedded one, random ones for `--smoke` and the cost card, one that learns in seconds."""
