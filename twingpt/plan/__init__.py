"""What several machines would make of a run: compute, communication, and whether they help."""
