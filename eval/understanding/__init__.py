"""Understanding benchmarks from their official local files: readers, scorers, and what blind guessing scores."""
