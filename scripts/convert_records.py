"""Records of version 0.1.0 to the one form of rows: python scripts/convert_records.py FOLDER

Rows were stored in four forms, some under keys such as "direct | PGD | 0.2". Since 0.2.0 every
record holds a list of rows whose fields can be read. Outcomes are carried over as they are, text by
text, and who made them, too. A record in the new form is left alone.
"""

import json
import sys
from pathlib import Path

EPSILONS = (0.0, 0.1, 0.2, 0.3, 4 / 255, 8 / 255, 2.0, 0.25, 0.5, 1.0)
# The ladder named its models by a fingerprint that was made otherwise, and could not be gone
# on with. These are the same models' (a test recomputes some of its rows).
LADDER = {
    "direct": "8330cc3f922c1f9f085efb143e7962defdbf80a800f51748f2451b70b28f072b",
    "adaptive, chosen": "ffa9d4c7a9b3548d4d5d090d0321aa1e5c372637b9df1f3900fa4af265fc4fa6",
}
COMPARED = ("mnist", "cifar10", "imagenet", "mnist_purifier", "mnist_purifier_l2")


def exact(text: str) -> float:
    """The number that was shortened to six digits."""
    return next(value for value in EPSILONS if f"{value:g}" == text)


def counted(text: str, n: int) -> dict:
    """A row of packed outcomes, counted."""
    return {"n": n, "correct": int(text, 16).bit_count(), "outcomes": text}


def compared(rows: dict) -> list[dict]:
    """Of a comparison of defenses."""
    found = []
    for key, row in rows.items():
        defense, attack, eps = key.split(" | ")
        found.append({"defense": defense, "attack": attack, "eps": exact(eps)} | row)
    return found


def variants(rows: dict, data: dict) -> list[dict]:
    """Of variants on validation and test digits."""
    return [
        {"split": split, "defense": row.pop("variant"), "n": data[split]["n"]} | row
        for split, part in rows.items()
        for row in part
    ]


def ladder(rows: dict, n: int) -> list[dict]:
    """Of attackers who know more and more."""
    found = []
    for key, text in rows.items():
        defense, eps, attack = key.split(" | ")
        name = {"chosen": "adaptive, chosen"}.get(defense, defense)
        found.append({"defense": name, "eps": exact(eps), "attack": attack} | counted(text, n))
    return found


def certified(rows: dict) -> list[dict]:
    """Of certificates and attacks on them."""
    found = []
    for key, row in rows.items():
        kind, what, sigma = key.split(" | ")
        radius = 0.0 if what == "certified" else float(what.split()[1])
        right = {"correct": int(row["outcomes"], 16).bit_count()} if radius else {}
        found.append({"kind": kind, "sigma": exact(sigma), "radius": radius} | row | right)
    return found


def levels(rows: list[dict], n: int) -> list[dict]:
    """Of noise levels and steps."""
    settings = ("sigma", "steps", "step_size")
    return [
        {
            "defense": row["use"],
            "options": {k: row[k] for k in settings if k in row},
            "n": n,
            **{k: row[k] for k in ("correct", "outcomes", "dae_sha256")},
        }
        for row in rows
    ]


def best_settings(rows: list[dict]) -> dict:
    """Of each defense the options with the highest score; of two alike, the first."""
    found: dict[str, dict] = {}
    for row in rows:
        old = found.setdefault(row["defense"], row)
        if sum(row["correct"]) > sum(old["correct"]):
            found[row["defense"]] = row
    return {name: row["options"] for name, row in found.items()}


def planned(rows: list[dict]) -> list[dict]:
    """Of a choice for photographs: networks that were only tried were named in one text."""
    found = []
    for row in rows:
        if row["defense"].startswith("depth "):
            tried, use = row["defense"].split(": ")
            depth, sigma = tried.removeprefix("depth ").split(", σ = ")
            row["defense"] = f"tried, {use.split(',')[0]}"
            row["options"] = {"depth": int(depth), "sigma": float(sigma)}
        found.append(row)
    return found


def convert(record: dict, name: str) -> dict:
    """A record in the new form."""
    rows = record.get("rows")
    if name in COMPARED and isinstance(rows, dict):
        record["rows"] = compared(rows)
    elif name == "mnist_variants" and isinstance(rows, dict):
        record["rows"] = variants(rows, record["data"])
        first = record["data"].pop("validation")
        record["data"] = {"split": "validation"} | first | record["data"]
    elif name == "mnist_ladder" and isinstance(rows, dict):
        record["rows"] = ladder(rows, record["data"]["n"])
        record["models_sha256"] = LADDER
    elif name == "mnist_certified" and isinstance(rows, dict):
        record["rows"] = certified(rows)
    elif name == "mnist_selection" and "use" in rows[0]:
        record["rows"] = levels(rows, record["data"]["n"])
    elif name == "mnist_tuning" and "chosen" not in record:
        record["chosen"] = best_settings(rows)
    elif name == "mnist_purifier_choice" and "name" not in record["attack"]:
        record["attack"] = {"name": "suite"} | record["attack"]
    elif name in ("cifar10_selection", "imagenet_selection"):
        record["rows"] = planned(rows)
    return record


def main(folder: Path) -> None:
    """Convert every record of a folder."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        old = json.dumps(record)
        if "outcomes" in record:
            record["outcomes"] = record["outcomes"].replace("records.unpack", "record.unpack")
        if json.dumps(convert(record, path.stem)) != old:
            text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
