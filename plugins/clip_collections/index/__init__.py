"""The index of a collection: a command builds it from the vectors, search reads it."""
