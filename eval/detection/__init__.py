"""Neural detectors and colour classifiers of everyday pictures, for GenEval's rules."""
