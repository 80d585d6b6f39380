"""Execute chapters and store their outputs: python scripts/execute.py book/*.ipynb

Each notebook runs in a kernel of its own, in an empty folder, on the CPU and the quick profile. The
stored outputs are what `pytest --nbval book/` compares with, so no output holds what differs from
run to run: no timestamps, no progress bars. When, where and for how long it ran is kept in the
notebook's metadata, and shown on the status page.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from status import write

from apudae.core import record

LIMIT = 1_000_000  # bytes of one notebook
ENVIRONMENT = {"APUDAE_PROFILE": "quick", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> None:
    """Run one notebook and write it back."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as empty:
        NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": empty}}, coalesce_streams=True
        ).execute()
    seconds = round(time.perf_counter() - start)
    told = {"apudae": {"seconds": seconds, **record.provenance("cpu")}}  # for the status page
    notebook.metadata = nbformat.from_dict(METADATA | told)
    for k, cell in enumerate(notebook.cells):
        cell.id = f"cell-{k}"
        cell.metadata.pop("execution", None)
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, indent=1) + "\n"
    if len(text) > LIMIT:
        raise SystemExit(f"{path}: {len(text):,} bytes, more than {LIMIT:,}")
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {time.perf_counter() - start:.0f} s, {len(text) / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    for argument in sys.argv[1:]:
        execute(Path(argument))
    write()
