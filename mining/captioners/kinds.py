"""All kinds of captioners."""

from __future__ import annotations

from maskmine.mining.captioners.endpoint import Endpoint
from maskmine.mining.captioners.florence2 import Florence2

AnyCaptioner = Endpoint | Florence2
"""Whatever writes captions; `kind` chooses."""
