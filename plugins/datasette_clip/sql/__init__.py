"""The SQL functions: of the model, and of search."""
