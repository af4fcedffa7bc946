"""The index of a collection: sign bits of its vectors in tables beside it, built by a command and read by search."""
