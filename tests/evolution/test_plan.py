"""Plan of an evolution: the command line is resolved, and every mistake shows before anything is written."""

from pathlib import Path

import numpy as np
import torch

from utils.cli import to_flags
from utils.config import TrainOptions
from utils.evolution.plan import format_command, make_plan
from utils.evolve import GENES, MUON_GENES, mutate

ROOT = Path(__file__).resolve().parents[2]


def plan(**settings):
    given = {"device": "cpu", "evolve": 16, **settings}
    return make_plan(TrainOptions.from_typed(given), ROOT / "train.py")


def test_options_become_flags():
    words = to_flags(
        {
            "batch_size": 8,
            "cos_lr": True,
            "rect": False,
            "freeze": [0, 3],
            "cache": None,
            "weights": "",
            "data": "a b.yaml",
        }
    )
    assert words == ["--batch-size=8", "--cos-lr", "--freeze", "0", "3", "--weights=", "--data=a b.yaml"]


def test_anchors_are_a_gene_unless_noautoanchor_is_given():
    assert plan().start["anchors"] == 0 and "anchors" not in plan(noautoanchor=True).start
    assert plan(hyp="hyp.VOC.yaml").start["anchors"] == 3.412


def test_those_of_muon_are_genes_only_with_it(tmp_path):
    file = tmp_path / "hyp.yaml"
    file.write_text((ROOT / "data" / "hyps" / "hyp.scratch-low.yaml").read_text() + "muon_lr: 0.05\n")
    assert not set(MUON_GENES) & set(plan(hyp=str(file)).start)
    assert all(set(individual) == set(GENES) for individual in plan(hyp=str(file)).population)
    start = plan(optimizer="Muon", hyp=str(file)).start
    assert list(start) == [*GENES, *MUON_GENES]
    assert [start[key] for key in MUON_GENES] == [0.05, 0.937, 0.0005]
    assert plan(optimizer="Muon").start["muon_lr"] == 0.02
    assert {individual["muon_lr"] for individual in plan(optimizer="Muon", hyp=str(file)).population} == {0.05}


def test_schedules_that_the_file_sets_are_constants_of_the_search(tmp_path):
    file = tmp_path / "hyp.yaml"
    file.write_text(
        (ROOT / "data" / "hyps" / "hyp.scratch-low.yaml").read_text() + "close_mosaic: 0.2\nema_tau: 2000\n"
    )
    found = plan(hyp=str(file))
    assert list(found.start) == [*GENES, "close_mosaic"]  # ema_tau has its default
    assert {individual["close_mosaic"] for individual in found.population} == {0.2}
    assert {mutate(found.start, np.random.default_rng(seed))["close_mosaic"] for seed in range(5)} == {0.2}


def test_the_population_is_a_few_of_the_projects_files_or_all_of_a_typed_folder():
    assert plan(evolve_population="").population == []
    assert len(plan().population) == 2 and len(plan(evolve=300).population) == 5  # the sixth is the start
    assert len(plan(evolve_population="data/hyps").population) == 5


def test_folder_of_the_run_and_devices_of_the_workers(monkeypatch):
    assert plan().folder == Path("runs/evolve/exp") and plan(project="a", name="b").folder == Path("a/b")
    assert plan().devices == ["cpu"] and plan(evolve_workers=3).devices == ["cpu"] * 3
    cards = [torch.device("cuda", k) for k in range(4)]
    monkeypatch.setattr("utils.evolution.plan.select_device", lambda text: cards)
    assert plan(device="0,1,2,3").devices == ["0", "1", "2", "3"]
    assert plan(device="0,1,2,3", evolve_workers=8).devices == ["0", "1", "2", "3"] * 2


def test_commands_hide_the_password_and_train_on_all_images():
    given = {
        "data": "my data.yaml",
        "epochs": 7,
        "hyp": "hyp.VOC.yaml",
        "seed": 3,
        "evolve": 16,
        "evolve_prune": True,
        "evolve_fraction": 0.25,
        "device": "cpu",
        "evolve_storage": "postgresql://me:secret@host/db",
    }
    found_with = format_command(TrainOptions(**given), frozenset(given), ROOT / "train.py")
    assert found_with == (
        "python train.py '--data=my data.yaml' --device=cpu --epochs=7 --evolve=16 "
        "--evolve-fraction=0.25 --evolve-prune --evolve-storage=postgresql://host/db "
        "--hyp=hyp.VOC.yaml --seed=3"
    )
    assert plan(**given).search_command == found_with
    assert plan(**given).training_command == "python train.py '--data=my data.yaml' --epochs=7"
    assert "--evolve-fraction=0.25" in plan(**given).training_flags  # of each generation


def test_trainings_get_the_typed_flags_except_their_own():
    assert plan(epochs=7, hyp="hyp.VOC.yaml", seed=3, noval=True, cos_lr=True).training_flags == [
        "--cos-lr",
        "--epochs=7",
    ]
