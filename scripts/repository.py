"""Write the repository's address, and its release, wherever they are needed.

    make repository URL=https://github.com/me/apudae-book
    python scripts/repository.py https://github.com/me/apudae-book --release v0.3.0

The address stands in ``pyproject.toml``; the release is the package's version. Everything else
repeats them: the first cell and the Colab badge of each notebook, the buttons of the built pages
(``_config.yml``), ``CITATION.cff`` and ``README.md``. A test finds any that disagree.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def files(root: Path = ROOT) -> list[Path]:
    """All that may name the address or the release."""
    notebooks = sorted((root / "book").rglob("*.ipynb"))
    return [
        root / name for name in ("pyproject.toml", "_config.yml", "CITATION.cff", "README.md")
    ] + [path for path in notebooks if "_build" not in path.parts]


def address(root: Path = ROOT) -> str:
    """The one that stands in ``pyproject.toml``."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"][
        "Repository"
    ]


def release(root: Path = ROOT) -> str:
    """The tag that pages and notebooks point to."""
    (branch,) = re.findall(
        r"branch: (\S+?)[,}\s]", (root / "_config.yml").read_text(encoding="utf-8")
    )
    return branch


def write(url: str, tag: str, root: Path = ROOT) -> None:
    """Put an address and a release in the place of those that stand there."""
    url = url.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        raise ValueError(f"URL: expected https://github.com/NAME/REPOSITORY, got {url!r}")
    old, old_tag = address(root), release(root)
    short, old_short = (u.removeprefix("https://github.com/") for u in (url, old))
    for path in files(root):
        text = path.read_text(encoding="utf-8")
        text = text.replace(f"{old_short}/blob/{old_tag}/", f"{short}/blob/{tag}/").replace(
            old, url
        )
        text = text.replace(f'RELEASE = \\"{old_tag}\\"', f'RELEASE = \\"{tag}\\"')
        if path.name == "_config.yml":
            text = text.replace(f"branch: {old_tag}", f"branch: {tag}")
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url", help="https://github.com/NAME/REPOSITORY")
    parser.add_argument(
        "--release", help="the tag to point to (default: the one that stands there)"
    )
    args = parser.parse_args()
    try:
        write(args.url, args.release or release())
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{args.url} stands in {len(files())} files now; commit them, and tag {release()}")


if __name__ == "__main__":
    main()
