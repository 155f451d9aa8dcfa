"""`moaa doctor`: whether a cluster can carry a run, before a run finds out."""
