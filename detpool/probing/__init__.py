"""What finished weights are worth under another pooler, other proposals, or in another place of the image."""
