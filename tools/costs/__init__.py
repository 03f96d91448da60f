"""Parts of `tools/cost.py`: common work for all models, timing in turns, memory, energy, and receptive fields."""
