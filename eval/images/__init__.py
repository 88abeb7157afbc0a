"""Scores of pictures: sets against sets, pairs of pictures, pictures against prompts."""
