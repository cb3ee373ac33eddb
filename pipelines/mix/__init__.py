"""A set that is put together from several finished ones, by weights."""
