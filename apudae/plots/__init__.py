"""Pictures, tables, and pictures that move without a kernel; a notebook shows each by itself.

- :class:`Table`, :class:`SortableTable`: rows, which a click on a header may sort
- :class:`DotPlot`: a table drawn, each value a dot with its interval, the numbers behind a fold
- :class:`Slider`: pictures behind a slider
- :class:`Picture`: a matplotlib figure; each function below returns one
- :func:`image_grid`: rows of images with notes
- :func:`curves`, :func:`rungs`, :func:`scatter`: accuracies over ε, per attack, over a cost
- :func:`losses`, :func:`against`, :func:`histograms`, :func:`roc`, :func:`bars`: other numbers
- :func:`certified`: certified accuracy over the radius; :func:`shifted`: why it holds
- :func:`field`, :func:`walk`: images of two pixels; an attack on its way
- :func:`recomputation`: which images a purifier holds on its way there and back
"""

from .figures import (
    against,
    bars,
    certified,
    curves,
    field,
    histograms,
    losses,
    recomputation,
    roc,
    rungs,
    scatter,
    shifted,
)
from .images import image_grid, walk
from .widgets import DotPlot, Picture, Slider, SortableTable, Table
