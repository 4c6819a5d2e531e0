"""The forms that a file of text can have, each told by its content."""
