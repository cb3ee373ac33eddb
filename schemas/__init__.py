"""What flows through maskmine: rows, tables, masks, shard samples, the manifest."""
