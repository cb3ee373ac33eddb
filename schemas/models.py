"""The record of a model that made part of the data: which weights, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """`role` is what the model did (`proposals`, `clip`, `nouns`), `name` what the user asked for.

    `sha256` covers the weights that were really loaded (None for a model without weights); `licence` is an SPDX
    identifier, or `unknown`: it decides who may use the masks and so is stamped into every manifest.
    """

    role: str
    name: str
    sha256: str | None
    licence: str
