"""An OpenAI-compatible server: a model folder speaks to many at once, or scores."""
