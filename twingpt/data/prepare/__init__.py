"""The stages of `prepare` one after another: what runs, and what is up to date."""
