"""The HTML pages home, about, classify, compare, search and viewer, and links between them and Datasette's pages."""
