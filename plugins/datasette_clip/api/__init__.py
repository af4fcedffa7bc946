"""What answers as JSON: embed and classify, search, thumbnails."""
