"""A run behind the OpenAI API, and a page to ask it questions and watch it train."""
