"""Rewards: one idea per module; a pure scorer on strings under a thin wrapper in the trainer's shape."""
