"""Models in from elsewhere and out to elsewhere: what weights/ does to tensors, and all that goes with them."""
