"""The JSON endpoints embed, classify and search, and thumbnails. Nothing here imports the pages."""
