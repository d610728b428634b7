"""Ray actors: engines, workers and learner ranks, and the weights that travel between them."""
