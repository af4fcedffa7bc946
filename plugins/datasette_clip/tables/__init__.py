"""What Datasette's own table and row pages get from us: a filter by likeness, and cells that show pictures."""
