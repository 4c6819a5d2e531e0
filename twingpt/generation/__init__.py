"""From a prompt to text: one sequence or many side by side, free or held to the form of an answer."""
