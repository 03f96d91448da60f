"""What models cost: the work that is the same for all, its time in turns, memory, operations, and receptive fields."""
