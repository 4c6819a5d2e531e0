"""Answers from the user's own text: passages found, their own sentences, contacts and sources."""
