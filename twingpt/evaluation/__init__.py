"""What a model can do on documents that it has not seen: answers written to their questions, and measured."""
