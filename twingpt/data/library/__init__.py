"""The user's text to find things in: passages by a question, contacts by their places, and a check of an output."""
