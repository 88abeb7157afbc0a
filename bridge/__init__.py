"""Weights of other projects: explicit key maps, and proof that the modules behave as theirs."""
