"""Benches by room: embedding, photos, search, server and container, and harness, which all share. See README.md."""
