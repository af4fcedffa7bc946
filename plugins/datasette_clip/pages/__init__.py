"""What answers as HTML: about, classify, compare, search."""
