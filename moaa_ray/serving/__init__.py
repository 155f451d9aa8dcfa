"""The models of a run, and the mixture itself, behind one OpenAI-compatible endpoint on Ray Serve."""
