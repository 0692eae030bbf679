"""Start-up: how the options of a run are completed."""

from types import SimpleNamespace

import pytest
import torch

from utils.config import TrainOptions
from utils.distributed import Distributed
from utils.image_size import round_size
from utils.training import startup


@pytest.mark.parametrize(
    "imgsz, message",
    [
        (32, "--imgsz 32 is too small for a model of stride 32; using 64"),
        (64, ""),
        (70, "--imgsz 70 is not a multiple of the model's stride 32; using 96"),
        ([384, 640], ""),
        ([380, 640], "--imgsz 380 640 are not multiples of the model's stride 32; using 384 640"),
        ([32, 640], "--imgsz 32 640 is too small for a model of stride 32; using 64 640"),
    ],
)
def test_the_message_gives_the_reason_of_another_image_size(capsys, imgsz, message):
    round_size(imgsz, 32, least=2)
    assert message in capsys.readouterr().err if message else capsys.readouterr().err == ""


def test_the_run_fills_in_its_nominal_batch(capsys):
    """It is recorded, so a resumed run keeps it for any --epochs."""
    short = completed(TrainOptions(batch_size=16, epochs=20), num_images=57 * 16)  # 1140 batches
    assert short.nbs == 16 and "one for every 16 images" in capsys.readouterr().out
    assert completed(short.replace(epochs=10**5), num_images=10**5).nbs == 16
    assert completed(TrainOptions(batch_size=16, nbs=64, epochs=20), num_images=57 * 16).nbs == 64
    assert completed(TrainOptions(batch_size=16, epochs=1000), num_images=10**6).nbs == 64
    assert capsys.readouterr().out == ""


def completed(options: TrainOptions, *, num_images: int = 1000, world_size: int = 1) -> TrainOptions:
    """Return the final options of a run on the CPU, with a model of stride 32."""
    group = Distributed(0, world_size, torch.device("cpu"), (torch.device("cpu"),))
    model = SimpleNamespace(size_multiple=32)
    return startup.complete_options(
        options, model, weights="w.pt", cfg="c.yaml", num_images=num_images, distributed=group, autocast=None
    )


def test_options_are_completed_in_one_place(monkeypatch):
    monkeypatch.setattr(startup, "find_batch_of_each", lambda *_: 12)
    typed = TrainOptions.from_typed({"imgsz": 70, "batch_size": -1, "epochs": 1000})
    final = completed(typed, num_images=10**6, world_size=2)
    assert final == typed.replace(weights="w.pt", cfg="c.yaml", imgsz=96, batch_size=24, nbs=64)
    assert (
        final.typed == {"imgsz", "batch_size", "epochs"} and completed(final, num_images=10**6, world_size=2) == final
    )
