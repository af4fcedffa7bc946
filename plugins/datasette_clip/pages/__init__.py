"""The pages: about, classify, compare, search; and links between them and those of Datasette."""
