"""Studies by several processes: the same rows as by one."""

import json

import support

WORK = """
sys.path.insert(0, sys.argv[1] + "/experiments")
from functools import partial
from toys import BRIEF, Blur, dots, linear
from apudae import attacks
from apudae.core.record import load
from apudae.experiments import Certified, Defense, Ladder, Place, Profile, Recipe, Study, Verdict
from apudae.experiments.choose import Choice, Trial
from apudae.purification import BitDepth, Defended, Direct

net = linear()
blur = Defended(net, Direct(Blur()))
bits = Defended(net, BitDepth(3))

class Bounds(Certified):
    def recipes(self):
        return {}

    def base(self, kind, sigma, place):
        return net

def tried(record, images, place):
    for name, model in {"blur": blur, "bits": bits}.items():
        yield Trial(name, {}, lambda model=model: model)
    record.save(chosen="blur")

def work(rank, size):
    place = Place(None, out / "weights", out / f"results-{size}", out / f"work-{size}")
    few = Profile(11, 5, 7, (0.1,), BRIEF)
    study = Study(
        name="toy",
        images=lambda place, profile: dots(11),
        defenses={
            "no defense": Defense(lambda place: net),
            "blur": Defense(lambda place: blur),
            "bits": Defense(lambda place: bits),
        },
        attacks={"PGD": partial(attacks.pgd, steps=3), "noise": attacks.noise},
        epsilons=(0.1,),
        profiles={"full": few},
        cw={"steps": 5, "searches": 2},
    )
    study.run(place)
    judged = Defense(lambda place: blur)
    Verdict("verdict", "blur", judged, lambda place: dots(11), 9, 0.1, BRIEF, "blur").run(place)
    defenses = {"blur": Defense(lambda place: blur)}
    Ladder("ladder", defenses, lambda place: dots(9), (0.1,), (0.1,), 3, 5).run(place)
    options = {"images": lambda place: dots(10), "classifier": lambda place: net}
    Choice("choice", tried, epsilons=(0.0, 0.1), steps=3, **options).run(place)
    brief = {"n": 8, "draws": (50, 10), "sigmas": (0.25,), "radii": (1.0,), "attacked": 4}
    brief |= {"steps": 2, "per_gradient": 2, "judges": 20}
    Bounds("bounds", "dots", "", None, lambda place: dots(9), **brief).run(place)
    kept = ("outcomes", "correct", "misread", "n", "stands", "options", "votes", "predictions")
    found = {}
    for name in ("toy", "verdict", "ladder", "choice", "bounds_certified"):
        rows = load(name, place.results)["rows"]
        order = ("defense", "attack", "eps", "name", "kind", "radius")
        rows.sort(key=lambda row: [str(row.get(k)) for k in order])
        found[name] = [{k: row[k] for k in kept if k in row} for row in rows]
    return found
"""


def test_studies_by_several_processes_have_the_rows_of_one(tmp_path):
    said = support.forked(tmp_path, WORK, "studies", (1, 3))
    assert said.count("| PGD | 0.1") == 2 * 3  # a line for each row and run, not for each process
    alone, *shared = (
        json.loads((tmp_path / f"studies-{size}-{rank}.json").read_text())
        for size, rank in ((1, 0), (3, 0), (3, 1), (3, 2))
    )
    assert all(alone.values()) and len(alone["toy"]) == 3 * 5
    for found in shared:
        assert found == alone
    for folder in ("results-3", "work-3"):
        assert not [path.name for path in (tmp_path / folder).iterdir() if "part" in path.name]


BESIDE = """
from apudae.core.processes import divided
from apudae.core.record import Record

def work(rank, size):
    mine = Record(f"shared-{size}", {}, out, keys=("row",))
    if rank == 0:  # what another run has stored meanwhile, in the same folder
        other = Record(f"shared-{size}", {}, out, keys=("row",), alone=True)
        other.rows.append({"row": "x", "n": 1})
        other.save(seen={"x": 1})
    found = [mine.measure((k,), lambda: {"n": len(divided(lambda p: p, 7))}) for k in "xyx"]
    mine.save(seen={"y": 2})
    return [[row["row"], row["n"]] for row in found], len(mine.rows), mine.more["seen"]
"""


def test_what_another_run_has_stored_is_taken_over_by_all_processes(tmp_path):
    support.forked(tmp_path, BESIDE, "beside", (1, 3))
    for size, rank in ((1, 0), (3, 0), (3, 1), (3, 2)):
        found = json.loads((tmp_path / f"beside-{size}-{rank}.json").read_text())
        assert found == [[["x", 1], ["y", 7], ["x", 1]], 2, {"x": 1, "y": 2}]
