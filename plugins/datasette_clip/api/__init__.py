"""The JSON endpoints embed, classify, search and health, and the pictures of rows. Nothing here imports the pages."""
