"""The benchmarks work, at a size where their figures mean nothing, and what they compare is the same work."""

from __future__ import annotations

import pytest
import torch

from benchmarks import (
    around,
    caching,
    captions,
    first_step,
    forecast,
    grid,
    install_time,
    memory,
    precision,
    quality_report,
    speed,
    step_time,
)
from benchmarks.arithmetic import count_flops
from benchmarks.report import Row, describe_spread, format_section
from benchmarks.workload import SD1_UNET, TINY, BareLoop, inject_by_hand, inject_by_peft, load_base, make_batches, make_config
from lora_trainer.models.tape import Use


def figures(section: str) -> dict[str, str]:
    """Returns the measured values of a printed section by the figures' names."""
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[1].strip() for row in rows[1:]}


def test_step_time(capsys):
    step_time.main(["--tiny", "--pairs", "2"])
    found = figures(capsys.readouterr().out)
    assert {"trainer / bare loop", "outside the denoiser, trainer"} <= found.keys()
    share = float(found["outside the denoiser, trainer"].split()[0])
    assert 0 < share < 100


def test_memory(tmp_path, capsys):
    """Each contestant's work, here in one process; a user's run gives each its own."""
    peaks = {}
    for name in ("prepare", *memory.CONTESTANTS):
        memory.main(["--tiny", "--child", name, "--folder", str(tmp_path)])
        peaks[name] = int(capsys.readouterr().out.split()[-1])
    assert (tmp_path / "run" / "run.safetensors").exists()
    assert all(peaks[name] > 2**26 for name in memory.CONTESTANTS)


def test_memory_is_judged_by_the_bare_script():
    rows = memory.make_rows({"trainer": 108 * 2**20, "bare": 100 * 2**20, "idle": 50 * 2**20})
    assert (rows[-1].value, rows[-1].is_met) == ("1.080", False)


def test_caching(capsys):
    caching.main(["--tiny"])
    found = figures(capsys.readouterr().out)
    assert float(found["caching 4, small VAE"].split()[0]) > 0


def test_captions(capsys):
    captions.main(["--captions", "9"])
    found = figures(capsys.readouterr().out)
    assert {"change all, .txt", "undo of all, metadata.csv"} <= found.keys()


def test_quality_report(capsys):
    quality_report.main(["--pictures", "6", "--side", "96"])
    found = figures(capsys.readouterr().out)
    assert float(found["processor time of a picture"].split()[0]) > 0


def test_precision(capsys):
    precision.main(["--tiny", "--steps", "2"])
    found = figures(capsys.readouterr().out)
    in_bf16, total = found["matrix products, convolutions and norms in bf16"].split(" of ")
    assert in_bf16 == total and int(total) > 100


def test_grid(capsys):
    grid.main(["--tiny", "--rounds", "2", "--steps", "2"])
    found = figures(capsys.readouterr().out)
    assert float(found["grid / bare loop"].split()[0]) > 0
    # What is compared is the same work: the same pictures.
    assert float(found["largest difference of their pictures"].split()[0]) <= 2


def test_forecast(capsys):
    forecast.main(["--tiny"])
    found = figures(capsys.readouterr().out)
    assert "counted" in found["tiny: forward"] and "counted" in found["tiny: peak"]


def test_speed(capsys):
    speed.main(["--shape", "tiny", "--steps", "2", "--only", "dropout", "--device", "cpu"])
    found = figures(capsys.readouterr().out)["tiny 64 px, dropout"]
    seconds = float(found.split()[0])
    outside = float(found.split(" ms outside")[0].split()[-1])
    assert 0 < outside < seconds


def test_the_arithmetic_of_sd1_is_that_worked_out_by_hand():
    assert count_flops(SD1_UNET, Use(512, 512)) == pytest.approx(1.79e12, rel=0.01)


def test_around(capsys):
    around.main(["--tiny"])
    found = figures(capsys.readouterr().out)
    assert float(found["captioning, miniature captioner"].split()[0]) > 0
    assert float(found["saving a state, SD1.5"].split()[0]) >= 0


@pytest.mark.slow
def test_first_step(capsys):
    first_step.main(["--tiny", "--starts", "1"])
    found = figures(capsys.readouterr().out)
    assert float(found["first step, from nothing"].split()[0]) > 0


def test_a_bf16_step_widens_nothing_but_gradients_and_the_prediction(tmp_path):
    """PEFT's own layers would widen the input of each."""
    config = make_config(tmp_path, TINY, num_pictures=1, num_steps=1)
    casts = precision.count_dtypes(config, TINY, "bf16").casts
    num_lora = sum(parameter.numel() for parameter in inject_by_peft(load_base(config).unet))
    latents = TINY.batch_size * 4 * (TINY.picture_side // 8) ** 2
    assert casts[torch.bfloat16, torch.float32] == num_lora + latents


def test_the_census_sees_fp32(tmp_path):
    """Otherwise "all in bf16" would say nothing."""
    config = make_config(tmp_path, TINY, num_pictures=1, num_steps=1)
    heavy = precision.count_dtypes(config, TINY, "fp32").heavy
    assert {dtype for _, dtype in heavy} == {torch.float32}


def test_the_bare_loops_do_the_same_work(tmp_path):
    config = make_config(tmp_path, TINY, num_pictures=1, num_steps=1)
    losses = []
    for inject in (inject_by_peft, inject_by_hand):
        model = load_base(config)
        parameters = inject(model.unet)
        for number, parameter in enumerate(parameters):
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
        loop = BareLoop(model.unet, parameters, make_batches(model, 2, TINY))
        torch.manual_seed(0)
        losses.append([loop.step() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) == 3


def test_a_missed_target_is_said_aloud():
    section = format_section("Title", "Conditions.", [Row("a", "2", "at most 1", False), Row("b", "1", "at most 1", True)])
    assert "| a | 2 | at most 1 | MISSED |" in section
    assert "| b | 1 | at most 1 | met |" in section


def test_spread_is_median_and_middle_half():
    assert describe_spread([1, 2, 3, 4, 100], digits=1, unit=" s") == "3.0 s (1.5 to 52.0)"


@pytest.mark.slow
def test_install_time(capsys):
    install_time.main(["--starts", "2"])
    found = figures(capsys.readouterr().out)
    assert 0 < float(found["of it, Python alone"].split()[0]) < float(found["start with a stamp"].split()[0])
