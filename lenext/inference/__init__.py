"""Running a trained network: the ways that this machine has, and the fastest of them that agrees."""
