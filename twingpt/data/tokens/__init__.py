"""From text to token files: the tokenizer, its marks, packing, and batches."""
