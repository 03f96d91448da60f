"""Two-stage object detectors in which RoI pooling, and every other pooling, is one config line."""
