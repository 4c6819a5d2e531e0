"""The user's text to find things in: its contacts with their places, and what an output says against them."""
