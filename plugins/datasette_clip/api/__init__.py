"""The JSON endpoints: embed and classify, search; and thumbnails. Nothing here imports the pages."""
