"""Do the engines compute the same, and does this machine compute right? What `parity` and `doctor` report."""
