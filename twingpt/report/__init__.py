"""Pages about runs: one run told whole, or several side by side."""
