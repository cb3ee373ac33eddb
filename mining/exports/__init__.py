"""Exports: finished shards in the forms that other training programs read; one file a form."""
