"""What things cost: the cost card, speed and memory beside named peers. Nothing imports these modules."""
