"""Benches by room: embedding, search, server and container, and harness, which all share. See README.md."""
