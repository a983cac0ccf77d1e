"""The examples run, train, and every wrapper trains as one plain process does."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_gpt import RESIDUAL, SmallGPT, make_batches, make_optimizer, make_warmup, set_weights

from hptransfer.adopt import infer_roles

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_plain_loop(capsys):
    losses = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert losses[-1] < losses[0] - 1.0
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if not line.startswith("init_:")]
    # The page shows what is printed; the losses' last digits are the processor's.
    page = (EXAMPLES.parent / "docs" / "adopt.md").read_text("utf-8")
    shown = page.partition("$ python examples/plain_loop.py\n")[2].partition("```")[0].splitlines()
    assert printed[:-1] == shown[:-1]
    first, last = (float(word) for word in shown[-1].split()[1:4:2])
    assert [first, last] == pytest.approx([losses[0], losses[-1]], abs=0.05)
    # m = 4: embeddings at η = 2^-7, all else that is decayed at η/4 with four times the decay.
    assert lines[0] == "embedding: lr 0.0078125, wd 0.001, 2 tensors"
    assert "hidden+hidden_residual+readout: lr 0.00195312, wd 0.004, 9 tensors" in lines


def test_a_study_runs_from_python_once(tmp_path, cache, capsys):
    main = runpy.run_path(str(EXAMPLES / "run_study.py"))["main"]
    plan, outcome, status, checks = main(tmp_path / "study")
    assert (plan.trials, outcome.num_trained, outcome.num_finished) == (8, 8, 8)
    assert sum(cell.completed + cell.diverged for cell in status.cells) == 8
    assert [check.agrees for check in checks] == [True, True]
    assert "end: 8 trials to train" in capsys.readouterr().out
    _, outcome, _, _ = main(tmp_path / "study")
    assert (outcome.num_trained, outcome.num_finished) == (0, 8)


def test_a_table_becomes_a_report(tmp_path, coordinates, capsys):
    check = tmp_path / "check.json"
    check.write_text(json.dumps(coordinates), encoding="utf-8")
    main = runpy.run_path(str(EXAMPLES / "table_to_report.py"))["main"]
    source = main(report=tmp_path / "report.html", checks=[check])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(source.fits)
    assert printed[1].startswith("mup: 0.0")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "mup" in page
    assert "the embedding shrinks" in page


def test_a_fit_is_made_once_and_asked(capsys):
    fits = runpy.run_path(str(EXAMPLES / "fit_and_ask.py"))["main"]()
    printed = capsys.readouterr().out
    assert len(fits) == 3
    assert printed.count("lr* ") == 3
    assert printed.count("extra_compute.") == 9


def train_plainly(steps):
    base = infer_roles(SmallGPT, base_width=32, width=64, roles=RESIDUAL)
    model = SmallGPT(64)
    set_weights(model, base)
    optimizer = make_optimizer(model, base)
    warmup = make_warmup(optimizer)
    losses = []
    for batch in make_batches(steps):
        losses.append(model(batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        warmup.step()
    return [loss.item() for loss in losses]


# Lightning warns of loaders without workers and of much else that is not ours.
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_as_a_plain_loop_does():
    pytest.importorskip("lightning", reason="lightning is not installed")
    import with_lightning

    losses = train_plainly(20)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1.0
    assert with_lightning.train() == pytest.approx(losses, abs=1e-5)


# Transformers and accelerate warn of what they will change themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["make_llama", "make_gpt2"])
def test_hugging_face_models_train_with_our_groups(name):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")
    import hugging_face

    trainer = hugging_face.train(getattr(hugging_face, name))
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 10
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    # m = 2: tables and gains keep the learning rate, matrices get half of it.
    groups = trainer.optimizer.param_groups
    lrs = {role: group["rule_lr"] for group in groups for role in group["name"].split("+")}
    expected = {"embedding": 2**-6, "norm": 2**-6, "hidden": 2**-7, "readout": 2**-7}
    assert lrs.items() >= expected.items()
    assert sum(len(group["params"]) for group in groups) == len([*trainer.model.parameters()])


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
def test_compiled_ddp_fsdp_and_a_checkpoint_train_as_one_process_does(tmp_path):
    environment = os.environ | {
        "INIT_METHOD": f"file://{tmp_path}/rendezvous",
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, EXAMPLES / "ddp_fsdp.py", tmp_path],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], [err[-2000:] for _, err in outputs]
    results = json.loads(outputs[0][0].splitlines()[-1])
    alone = results.pop("alone")
    assert len(alone["losses"]) == 4
    assert alone["losses"][-1] < alone["losses"][0]
    assert set(results) == {"compile", "ddp", "fsdp", "checkpoint"}
    for way, result in results.items():
        assert result["groups"] == alone["groups"], way
        assert result["losses"] == pytest.approx(alone["losses"], abs=1e-10), way


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mamba", "sorter"])
def test_a_study_of_ones_own_model_trains_and_is_read(name, tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / name
    study = EXAMPLES / "own_model" / f"{name}.toml"
    for arguments in (["run", str(study), "-o", str(out)], ["fit", str(out), "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "hptransfer", *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    fits = json.loads(done.stdout)["fits"]
    assert len({str(fit["group"]) for fit in fits}) == len(fits) >= 2
    assert [basin["width"] for basin in fits[0]["basins"]] == [16, 32, 64]
