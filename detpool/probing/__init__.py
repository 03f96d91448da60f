"""What a pooling keeps of an image, asked without training a detector."""
