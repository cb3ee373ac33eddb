"""How much of one thing a caption source may hold: what is longer, deeper or fuller was not made by honest means.

Small files can stand for anything: a gzip of two megabytes for two gigabytes, a list in a list fifty thousand times, a
page of a table that unfolds. The limits keep the memory that reading takes below two gigabytes, whatever is read.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maskmine.schemas.settings import Settings


class Limits(Settings):
    """What a record, a compressed file, a tar and a table of a caption source may hold."""

    max_record_bytes: Annotated[int, Field(ge=1_000, le=1_000_000_000)] = 16_000_000
    """Length of one record: a line, an entry of a JSON list, a row of a table. A longer one is a broken record; lines
    without end are no table, and refused."""
    max_depth: Annotated[int, Field(ge=5, le=300)] = 100
    """How deep lists and objects of JSON may lie in each other; a record that is deeper is a broken one."""
    max_unpacked_ratio: Annotated[float, Field(ge=10)] = 200.0
    """How many times longer than itself a compressed file may be, beyond its first 8 MB; longer ones are refused."""
    max_tar_members: Annotated[int, Field(ge=1)] = 500_000
    """Files in a tar; each takes memory while the tar is listed."""
    table_memory_gb: Annotated[float, Field(ge=1.0)] = 2.0
    """Address space, in 10⁹ bytes, of the process that reads Parquet; a file that needs more is refused."""
    table_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds of computing in that process for the rows that are read at once; a file that needs more is refused."""


USUAL = Limits()
"""Where no settings are at hand."""
