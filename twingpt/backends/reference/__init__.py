"""The reference engine: plain NumPy, forward and backward by hand, made to be read rather than to be fast."""
