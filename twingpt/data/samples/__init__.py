"""From documents to the questions, answers and summaries that a model is trained on."""
