"""Which folder a run goes on in, who may be in it, and what is said of one that is damaged."""
