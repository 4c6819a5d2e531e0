"""Does this machine compute right? What `twingpt doctor` reports, and the quick check before training."""
