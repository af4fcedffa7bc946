"""The HTML pages about, classify, compare and search, and links between them and Datasette's pages."""
