"""The SQL functions: those of the model, and clip_search."""
