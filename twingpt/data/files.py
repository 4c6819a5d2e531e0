"""The names of the files in DATA, in one place: `prepare` writes them, training and generation look for them."""

CLEANED_FILE = "cleaned.txt"
SAMPLES_FILE = "samples.jsonl"
TOKENIZER_FILE = "tokenizer.json"
CONTACTS_FILE = "contacts.sqlite"
LIBRARY_FILE = "library.sqlite"
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"

ARRAYS = "<arrays>"
"""What a run's config.toml has in place of DATA where it was trained on arrays of tokens."""
