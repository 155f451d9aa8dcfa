"""What people look at after a run: the page of pairs, and one prompt followed through all stages."""
