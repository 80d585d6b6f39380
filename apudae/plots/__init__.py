"""Figures, tables, and pictures that move without a kernel."""

from .figures import (
    against,
    bars,
    certified,
    checkpoints,
    curves,
    field,
    histograms,
    image_grid,
    losses,
    roc,
    rungs,
    scatter,
    shifted,
    walk,
)
from .widgets import Picture, Slider, SortableTable, Table

__all__ = [
    "Picture",
    "Slider",
    "SortableTable",
    "Table",
    "against",
    "bars",
    "certified",
    "checkpoints",
    "curves",
    "field",
    "histograms",
    "image_grid",
    "losses",
    "roc",
    "rungs",
    "scatter",
    "shifted",
    "walk",
]
