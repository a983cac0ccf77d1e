"""A user's own model in a study: planned, stacked, trained, interrupted, refused."""

import functools
import json
import math
import random
import re
import shutil
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hptransfer.cli.main import main
from hptransfer.errors import ConfigError, DataError, HptransferError, StoreError
from hptransfer.study import load_study, verify_table
from hptransfer.study._executor import hash_own_code
from hptransfer.study._own_model import OwnBatches, OwnModel
from hptransfer.study._plan import Machine, Speed
from hptransfer.study._preview import plan_study
from hptransfer.study._runner import RunError, Shard, prepare_run
from hptransfer.study._trial import list_trials
from hptransfer.study.store import read_trials
from hptransfer.study.study_settings import (
    _write_settings,
    open_study,
    read_config,
    read_settings,
)
from hptransfer.tables import read_source, read_table
from hptransfer.train._modules import ModuleError, copy_module
from study.own_model import PAIR_STUDY, STUDY, stacking_pays, write_own
from study.training import complete, leave_checkpoints, prepare, read_plan, read_rows

FEWER_RATES = ("log2_lr = [-7, -5, 6]", "log2_lr = [-7, 6]")


@pytest.fixture
def own_file(study_file, monkeypatch):
    """A study of a model of one's own, beside the text of the small study.

    Stacking always seems to pay: no test depends on how fast this machine is just now.
    """
    monkeypatch.setattr(OwnModel, "_time", stacking_pays)
    return write_own(study_file.parent)


@pytest.mark.parametrize(("steps", "gain", "mode"), [
    (10**4, 2.0, "compiled+captured"),
    (10**4, 1.0, "captured"),
    (10, 2.0, "captured"),
])  # fmt: skip
def test_on_a_gpu_a_step_is_captured_and_compiled_where_that_pays(
    own_file, monkeypatch, steps, gain, mode
):
    def time_steps(self, width, count, *, mode, precision, device):
        seconds = 0.01 / count / (gain if mode.startswith("compiled") else 1.0)
        return Speed(precision=precision, seconds=seconds, num_stacked=count, mode=mode)

    monkeypatch.setattr(OwnModel, "_time", time_steps)
    monkeypatch.setattr(OwnModel, "why_not_stacked", lambda self, width, **options: "")
    change(own_file, ("steps = 12", f"steps = {steps}"))
    machine = Machine(device="cuda", name="a GPU", memory=2**36, workers=1, threads=1)
    found = load_study(own_file).own_model.measure(16, num_runs=20, machine=machine)
    assert (found.mode, found.num_stacked) == (mode, 16)


def test_planning_leaves_the_caller_s_random_states_as_they_were(study_file):
    """A model with dropout is made, compared, timed and measured."""
    own_file = write_own(study_file.parent)
    change(own_file, ("my_model.py:make", "my_model.py:Tracking"))
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    plan_study(load_study(own_file), workers=1)
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert str(before[1:]) == str(after[1:])


def change(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_trials_are_stacked_and_give_the_losses_of_plain_training(own_file, tmp_path):
    """Against the factory's model in a loop of torch's AdamW, with adopt's numbers."""
    complete(own_file, tmp_path / "out")
    groups = read_plan(tmp_path / "out")
    assert {group.mode for group in groups} == {"eager"}
    assert max(len(group.runs) for group in groups) > 1
    rows = {row["id"]: row for row in read_rows(tmp_path / "out")}
    config = load_study(own_file)
    own = config.own_model
    trials = [
        trial for trial in list_trials(config)
        if trial.width == 32 and math.log2(trial.base_lr) == -5 and trial.seed == 1
    ]  # fmt: skip
    assert [trial.parameterization for trial in trials] == ["sp", "mup"]
    from hptransfer.study._executor import open_data
    from hptransfer.train._batches import Batches, validation_windows
    from hptransfer.train._modules import language_model_loss
    from hptransfer.train._trainer import schedule_factor

    tokens = open_data(config)
    batches = Batches(tokens.train, context=16)
    for trial in trials:
        model, numbers = own.start(trial), own.numbers(trial)
        groups = [
            {"params": [parameter], "lr": numbers[name].lr, "peak": numbers[name].lr}
            for name, parameter in model.named_parameters()
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
        losses = []
        for step in range(12):
            ids = torch.from_numpy(batches.batch(1, step, batch=4))
            loss = language_model_loss(model, {"tokens": ids})
            losses.append(loss.item())
            model.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                factor = schedule_factor(step, steps=12, warmup=0.2, decay=0.2)
                group["lr"] = group["peak"] * factor
            optimizer.step()
        row = rows[trial.id]
        assert row["loss_curve"] == pytest.approx(losses, rel=1e-5)
        with torch.no_grad():
            windows = torch.from_numpy(validation_windows(tokens.val, 16, 256))
            held_out = language_model_loss(model, {"tokens": windows})
        assert row["loss"] == pytest.approx(held_out.item(), rel=1e-5)


def test_a_trial_that_was_stacked_is_verified_in_its_stack(own_file, tmp_path):
    complete(own_file, tmp_path / "out")
    groups = {group.name: len(group.runs) for group in read_plan(tmp_path / "out")}
    checks = verify_table(load_study(own_file), tmp_path / "out", count=6)
    assert all(check.agrees and check.tolerance == 0 for check in checks)
    assert any(check.found is not None for check in checks)
    stacked = {row["id"]: groups[row["group"]] for row in read_rows(tmp_path / "out")}
    assert max(stacked[check.id] for check in checks) > 1


def test_a_table_without_its_plan_is_verified_trial_by_trial(own_file, tmp_path):
    """Bits are those of the stack: losses may differ by seed noise."""
    complete(own_file, tmp_path / "out")
    table = tmp_path / "table.parquet"
    pq.write_table(read_trials(tmp_path / "out").rows, table)
    checks = verify_table(load_study(own_file), table, count=6)
    assert all(check.agrees and check.tolerance > 0 for check in checks)
    finished = [check for check in checks if check.found is not None]
    assert finished
    assert all(check.found == pytest.approx(check.recorded, rel=1e-4) for check in finished)


@pytest.mark.parametrize(
    "line", ["        return self.readout(x)\n", "    return Model(width, **options)\n"]
)
def test_a_model_that_raises_when_verified_is_one_line(
    own_file, tmp_path, capsys, monkeypatch, line
):
    indent = line[: -len(line.lstrip())]
    lines = ("import os", "if os.environ.get('LOST'):", "    raise RuntimeError('lost\\nin it')")
    change(tmp_path / "my_model.py", (line, "".join(f"{indent}{each}\n" for each in lines) + line))
    complete(own_file, tmp_path / "out")
    monkeypatch.setenv("LOST", "1")
    assert main(["verify", str(own_file), str(tmp_path / "out"), "--count", "1"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"hptransfer: (trial|model\.factory).* raised RuntimeError: lost", said)
    assert "Traceback" not in said


def test_rows_and_plan_say_whose_model_it_is(own_file, tmp_path):
    complete(own_file, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert {row["factory"] for row in rows} == {"my_model.py:make"}
    assert {row["head_size"] for row in rows} == {None}
    diverged = {row["state"] for row in rows if row["log2_lr"] == 6}
    assert diverged == {"diverged"}
    model = load_study(own_file).own_model.make(32)
    count = sum(p.numel() for p in model.parameters())
    assert {row["num_params"] for row in rows if row["width"] == 32} == {count}
    # At the base width the rules are one run.
    base = [group for group in read_plan(tmp_path / "out") if group.width == 16]
    assert all(len(run) == 2 for group in base for run in group.runs)


@pytest.mark.parametrize(
    "model",
    [
        'make_tracking"',
        'make_turning"',
        'make"\nloss = "my_model.py:noisy_loss"',
        'make"\nloss = "my_model.py:numpy_loss"',
    ],
    ids=["tracking", "turning", "noisy", "numpy"],
)
def test_an_interrupted_study_ends_with_the_same_bits(own_file, tmp_path, model):
    """With dropout and a moving buffer; bfloat16 and a complex buffer; a loss that draws noise."""
    change(own_file, (':make"', f":{model}"), FEWER_RATES)
    prepare(own_file, tmp_path / "undisturbed")
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "interrupted")
    complete(own_file, tmp_path / "undisturbed")
    directory = tmp_path / "interrupted"
    leave_checkpoints(own_file, directory)
    complete(own_file, directory)
    assert read_rows(directory) == read_rows(tmp_path / "undisturbed")


def test_code_that_has_changed_is_refused_until_it_is_told(own_file, tmp_path, capsys):
    """In the factory's file or in one that it imports; other files of the folder do not matter."""
    folder, directory = own_file.parent, tmp_path / "out"
    model = folder / "my_model.py"
    (folder / "my_layers.py").write_text("SCALE = 1.0\n")
    model.write_text("from my_layers import SCALE\n" + model.read_text())
    work = prepare(own_file, directory)
    recorded = read_settings(directory)["code"]
    assert list(recorded) == ["my_model.py", "my_layers.py"]
    complete(own_file, directory, groups=work.groups[:1])
    (folder / "my_data.py").write_text("")
    model.touch()
    prepare(own_file, directory)
    (folder / "my_layers.py").write_text("SCALE = 2.0\n")
    with pytest.raises(ConfigError, match=r"my_layers\.py has changed .* restart Python"):
        prepare(own_file, directory)  # which still has the layers of before
    sys.modules.pop("my_layers")
    argv = ["run", str(own_file), "-o", str(directory), "--workers", "1"]
    assert main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "my_layers.py changed" in line
    assert "--new-code" in line
    with pytest.raises(RunError, match=r"my_layers\.py changed"):  # a worker that started before
        complete(own_file, directory, groups=work.groups[1:])
    assert main([*argv, "--new-code"]) == 0
    assert read_settings(directory)["code"] != recorded
    counts = Counter(row["code_hash"] for row in read_rows(directory))
    assert len(counts) == 2
    prepare(own_file, directory)
    # Whoever reads the trials together is told.
    told = [f"{count}( trials)? by code {code[:12]}" for code, count in counts.items()]
    table = tmp_path / "table.parquet"
    pq.write_table(read_trials(directory).rows, table)
    for argv in (["status", directory], ["fit", directory], ["recommend", table, "--width", "64"]):
        capsys.readouterr()
        main([*map(str, argv)])
        said = " ".join(capsys.readouterr().err.split())
        assert all(re.search(each, said) for each in told), argv
    [(code, _), *_] = counts.items()
    kinds = {each.kind for each in read_source(table, where={"code_hash": code}).notes}
    assert "codes" not in kinds
    # What the code of before has trained cannot be trained again.
    rows = {row["id"]: row["code_hash"] for row in read_rows(directory)}
    now = hash_own_code(load_study(own_file))
    assert main(["verify", str(own_file), str(directory), "--count", "100", "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert [rows[trial["id"]] for trial in document["trials"]] == [now] * counts[now]
    assert document["by_other_code"] == counts.total() - counts[now] > 0
    assert f"note: {document['by_other_code']} trials by other code" in told.err
    (folder / "my_layers.py").write_text("SCALE = 3.0\n")
    sys.modules.pop("my_layers")
    with pytest.raises(DataError, match="expected the code that trained it") as caught:
        verify_table(load_study(own_file), directory)
    assert "\n" not in str(caught.value)


def test_merged_trials_that_the_new_code_tells_apart_are_not_one_run(own_file, tmp_path, capsys):
    """Without a norm or a bias two rules are one; the new code has a norm."""
    change(own_file, ('["sp", "mup"]', '["sp", "sp+ln"]'), ("[-7, -5, 6]", "[-7]"))
    model, directory = own_file.parent / "my_model.py", tmp_path / "out"
    change(
        model,
        ("nn.LayerNorm(width)", "nn.Identity()"),
        ("nn.Linear(width, width)", "nn.Linear(width, width, bias=False)"),
        ("nn.Linear(width, 2 * width)", "nn.Linear(width, 2 * width, bias=False)"),
        ("nn.Linear(2 * width, width)", "nn.Linear(2 * width, width, bias=False)"),
    )
    prepare(own_file, directory)
    assert {len(run) for group in read_plan(directory) for run in group.runs} == {2}
    change(model, ("nn.Identity()", "nn.LayerNorm(width)"))
    argv = ["run", str(own_file), "-o", str(directory), "--workers", "1", "--new-code"]
    assert main(argv) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no longer train with equal numbers under the new code" in said
    assert {row["width"] for row in read_rows(directory)} == {16}  # where both still are one


@pytest.mark.parametrize(
    ("old", "new"), [("torch.tanh(self.up", "torch.relu(self.up"), ("2 * width", "3 * width")]
)
def test_a_group_under_way_starts_anew_under_new_code(own_file, tmp_path, old, new):
    change(own_file, FEWER_RATES)
    prepare(own_file, tmp_path / "anew")
    directory = Path(shutil.copytree(tmp_path / "anew", tmp_path / "out"))
    saved = {path.stem for path in leave_checkpoints(own_file, directory)}
    change(own_file.parent / "my_model.py", (old, new))
    events = []
    for each in (directory, tmp_path / "anew"):
        work = prepare_run(load_study(own_file), each, workers=2, new_code=True)
        complete(own_file, each, groups=work.groups, on_event=events.append)
    told = {event.group: event.message for event in events if event.kind == "note"}
    assert set(told) == saved
    assert set(told.values()) == {"its checkpoint is of other code: the group starts anew"}
    found, expected = (
        [row for row in read_rows(each) if row["group"] in saved]
        for each in (directory, tmp_path / "anew")
    )
    assert found == expected


def test_a_directory_of_old_takes_the_code_that_it_finds(own_file, tmp_path):
    config, data = load_study(own_file), {"data_hash": "ab" * 32}
    open_study(tmp_path / "out", config, data=data)
    assert "code" not in read_settings(tmp_path / "out")
    open_study(tmp_path / "out", config, data=data, code={"my_model.py": "12"})
    assert read_settings(tmp_path / "out")["code"] == {"my_model.py": "12"}
    with pytest.raises(StoreError, match=r"my_model\.py no longer used"):
        open_study(tmp_path / "out", config, data=data, code={})


def test_a_directory_of_old_says_once_that_its_code_is_not_known(own_file, tmp_path):
    work = prepare(own_file, tmp_path / "out")
    complete(own_file, tmp_path / "out", groups=work.groups[:1])
    settings = read_settings(tmp_path / "out")
    kept = {key: value for key, value in settings.items() if key not in ("code", "digest")}
    _write_settings(tmp_path / "out", kept, replace=True)
    notes = [prepare(own_file, tmp_path / "out").notes for _ in range(2)]
    assert notes == [
        ("this directory records no code: that of its stored trials is not known",), ()
    ]  # fmt: skip


def test_shards_share_a_study_of_ones_own_model(own_file, tmp_path):
    prepare(own_file, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "shared")
    complete(own_file, tmp_path / "whole")
    for index in (1, 2):
        complete(own_file, tmp_path / "shared", shard=Shard(index=index, count=2))
    assert read_rows(tmp_path / "shared") == read_rows(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["lion", "sgd", "muon"])
def test_another_optimizer_trains_a_study(own_file, tmp_path, optimizer):
    change(
        own_file,
        ("steps = 12", f'steps = 12\noptimizer = "{optimizer}"'),
        ("log2_lr = [-7, -5, 6]", "log2_lr = [-9]"),
        ("seed = [0, 1]", "seed = [0]"),
    )
    complete(own_file, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert {row["optimizer"] for row in rows} == {optimizer}
    assert {row["state"] for row in rows} == {"completed"}
    assert all(row["loss"] < row["init_loss"] for row in rows)


@pytest.mark.parametrize("where", ["table", "file"])
def test_rules_beyond_the_lattice_and_of_ones_own_train_a_study(own_file, tmp_path, where):
    """Each tensor's rate is what adopt gives a plain training for that rule."""
    table = 'like = "mup"\nroles.embedding.lr = -0.5\n'
    ours = "ours" if where == "table" else "ours.toml"
    change(
        own_file,
        ('["sp", "mup"]', f'["completep", "hayou-liu", "{ours}"]'),
        ("context = 16", 'context = 16\nnum_layers = 1\napplied = ["residual_multiplier"]'),
        ("log2_lr = [-7, -5, 6]", "log2_lr = [-6]"),
    )
    if where == "table":
        own_file.write_text(own_file.read_text() + f"\n[rules.ours]\n{table}")
    else:
        (own_file.parent / ours).write_text(f'name = "ours"\n{table}')
    complete(own_file, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert {row["parameterization"] for row in rows} == {"completep", "hayou-liu", "ours"}
    assert all(row["loss"] < row["init_loss"] for row in rows)
    config = read_config(tmp_path / "out", root=own_file.parent)
    assert config == load_study(own_file)
    own = config.own_model
    rates = {
        trial.parameterization: {name: n.lr for name, n in own.numbers(trial).items()}
        for trial in list_trials(config)
        if trial.width == 32
    }
    for rule, power in (("completep", 0.0), ("hayou-liu", -0.5), ("ours", -0.5)):
        assert rates[rule]["table.weight"] == pytest.approx(2.0 ** (-6 + power))
        assert rates[rule]["blocks.0.up.weight"] == pytest.approx(2.0**-7)
    by_role = read_table(tmp_path / "out").rates({"parameterization": "ours"}, 32, 2.0**-6)
    assert by_role["embedding"] == pytest.approx(2.0**-6.5)
    # The rule is part of the study: another one under its name is another study.
    path = own_file if where == "table" else own_file.parent / ours
    change(path, ("lr = -0.5", "lr = -0.25"))
    with pytest.raises(HptransferError, match=r"rules\.ours\.roles\.embedding\.lr = -0.25"):
        prepare(own_file, tmp_path / "out")


def test_rescaled_initial_weights_keep_the_models_own_shape(own_file):
    change(own_file, ("context = 16", 'context = 16\ninit = "own"'))
    config = load_study(own_file)
    own = config.own_model
    trials = {
        (t.parameterization, t.width): t
        for t in list_trials(config)
        if t.seed == 0 and math.log2(t.base_lr) == -5
    }
    at_base = own.start(trials["mup", 16])
    torch.testing.assert_close(at_base.state_dict(), own.make(16, seed=0).state_dict())
    sp, mup = (own.start(trials[rule, 32]).readout.weight for rule in ("sp", "mup"))
    torch.testing.assert_close(mup, sp * 2**-0.5)


def test_a_model_that_cannot_be_stacked_trains_trial_by_trial(own_file, tmp_path):
    change(own_file, (':make"', ':make_branching"'), ("seed = [0, 1]", "seed = [0]"))
    complete(own_file, tmp_path / "out")
    assert {group.mode for group in read_plan(tmp_path / "out")} == {"one by one"}
    plan = plan_study(load_study(own_file), workers=2)
    assert any("vmap cannot take the model" in note for note in plan.notes)
    losses = {row["log2_lr"]: row["loss"] for row in read_rows(tmp_path / "out")}
    assert losses[-5] < losses[-7]


def test_planning_leaves_the_process_as_it_was(own_file):
    torch.use_deterministic_algorithms(True, warn_only=True)
    threads = torch.get_num_threads()
    plan_study(load_study(own_file), workers=1)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.get_num_threads() == threads


def test_batches_and_a_loss_of_ones_own_train_an_encoder_and_decoder(own_file, tmp_path):
    write_own(own_file.parent, PAIR_STUDY)
    complete(own_file, tmp_path / "out")
    rows = read_rows(tmp_path / "out")
    assert all(row["loss"] < row["init_loss"] - 0.3 for row in rows)
    assert {row["text"] for row in rows} == {None}
    settings = json.loads((tmp_path / "out" / "study.json").read_text())
    assert settings["data"]["batches"] == "my_data.py:batches"
    assert settings["config"]["model"]["loss"] == "my_model.py:pair_loss"


BAD = {
    "no module": ([(":make\"", ":make_text\"")], "expected a torch.nn.Module, found str"),
    "wrong logits": ([(":make\"", ":make_last\"")], "expected logits of shape"),
    "context beyond its places": ([(":make\"", ":make_placed\"")],
                                  "width 16: a step of the model raised IndexError"),
    "replaced buffer": ([(":make\"", ":make_replacing\"")], "buffer 'mean' is replaced"),
    "forward that is no method": ([(":make\"", ":make_patched\"")],
                                  "the model has a forward, set on the instance, that is no"),
    "loss of other weights": ([(":make\"", ':make"\nloss = "my_model.py:elsewhere_loss"')],
                              "the loss does not depend on the model's weights"),
    "depth changes": ([(":make\"", ":make_deep\"")], "depth"),
    "needs an argument": ([(":make\"", ":make_two\"")], "'depth'; arguments beside the width"),
    "no such option": ([("context = 16", "context = 16\n[model.options]\nheads = 3")],
                       "unexpected keyword argument 'heads'"),
    "differs between calls": ([(":make\"", ":make_counting\"")], "extra.weight"),
    "no such file": ([("my_model.py", "mine.py")], "model.factory: importing"),
    "no such function": ([(":make\"", ":mak\"")], "did you mean 'make'"),
    "not a function's name": ([("my_model.py:make", "my_model.py")], "FILE.py:NAME"),
    "heads beside it": ([("context = 16", "context = 16\nhead_size = 8")], "model.head_size"),
    "no context": ([("context = 16\n", "")], "model.context"),
    "probes": ([("[train]", "[probes]\nevery = 5\n\n[train]")], "probes"),
    "momentum of AdamW": ([("steps = 12", "steps = 12\nmomentum = 0.5")], "train.momentum"),
    "unknown optimizer": ([("steps = 12", 'steps = 12\noptimizer = "adam2"')], "train.optimizer"),
    "rule and optimizer": ([("steps = 12", 'steps = 12\noptimizer = "sgd"'),
                            ('["sp", "mup"]', '["hayou-liu"]')], "says nothing for 'sgd'"),
    "unknown rule": ([('"mup"]', '"ours"]')], "'ours'"),
    "no such rule file": ([('"mup"]', '"ours.toml"]')], "ours.toml"),
    "rule of nothing": ([("[train]", "[rules.ours]\nlike = \"best\"\n\n[train]")],
                        "rules.ours: like"),
    "rule that is none": ([("[train]", "[rules]\nours = 3\n\n[train]")], "rules.ours"),
    "rule in place of another": ([("[train]", "[rules.sp]\nlike = \"mup\"\n\n[train]")],
                                 "a name of its own"),
    "unknown role": ([("context = 16", 'context = 16\nroles = {"blocks.9" = "hidden"}')],
                     "blocks.9"),
}  # fmt: skip


@pytest.mark.parametrize(("pairs", "message"), BAD.values(), ids=BAD)
def test_a_bad_factory_is_refused_in_one_line(own_file, tmp_path, pairs, message):
    change(own_file, *pairs)
    with pytest.raises(HptransferError) as caught:
        complete(own_file, tmp_path / "out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("restless", "differs between two calls"),
        ("lopsided", "different first sizes"),
        ("keyless", r"data.batches: \(0, 0, 'train'\) raised KeyError: 'source'$"),
    ],
)
def test_bad_batches_are_refused_in_one_line(own_file, tmp_path, function, message):
    write_own(own_file.parent, PAIR_STUDY.replace(":batches", f":{function}"))
    with pytest.raises(HptransferError, match=message):
        complete(own_file, tmp_path / "out")


def test_unclear_roles_are_asked_once_as_a_line_to_paste(own_file, tmp_path):
    change(own_file, (':make"', ':make_scaled"'))
    with pytest.raises(HptransferError, match=r"under \[model\]: roles = ") as caught:
        complete(own_file, tmp_path / "out")
    line = re.search(r"roles = \{[^}]*\}", str(caught.value)).group()
    change(own_file, ("context = 16", f"context = 16\n{line}"), ("steps = 12", "steps = 2"))
    complete(own_file, tmp_path / "told")
    assert read_rows(tmp_path / "told")


def test_a_study_of_ones_own_model_has_an_identity_of_its_own(own_file):
    one = load_study(own_file)
    assert load_study(own_file).identity() == one.identity()
    other = change(own_file, ("context = 16", 'context = 16\ninit = "own"'))
    assert load_study(other).identity() != one.identity()


@pytest.mark.parametrize("text", [STUDY, PAIR_STUDY])
def test_what_is_read_back_from_the_directory_is_the_same_study(own_file, text):
    from hptransfer.study.config import parse_study

    config = load_study(write_own(own_file.parent, text))
    assert parse_study(config.to_dict()) == config


def test_errors_of_users_code_name_it_though_they_are_of_our_types(own_file, monkeypatch):
    def fail(*args):
        raise DataError("no text")

    with pytest.raises(ModuleError, match=r"data\.batches: \(0, 3, 'train'\) raised .*no text"):
        OwnBatches(fail).batch(0, 3, batch=4)
    model = OwnModel(load_study(own_file))
    monkeypatch.setattr(model, "_factory", fail)
    with pytest.raises(ModuleError, match=r"model\.factory: .*\(32\) raised .*no text; arguments"):
        model.make(32)


# What torch.compile imports is deprecated by torch itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_compile_wraps_is_taken_without_it(own_file, monkeypatch):
    model = load_study(own_file).own_model
    names = [name for name, _ in model.make(32).named_parameters()]
    factory = model._factory

    def make(width):
        found = factory(width)
        found.blocks[0] = torch.compile(found.blocks[0])
        return torch.compile(found)

    monkeypatch.setattr(model, "_factory", make)
    assert [name for name, _ in model.make(32).named_parameters()] == names


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_of_every_kind_are_taken_off_and_others_kept(own_file, monkeypatch):
    class Around(torch.nn.Module):
        """Forwards attributes to what it holds."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, x):
            return 2 * self.inner(x)

    model = load_study(own_file).own_model
    factory = model._factory
    ids = torch.arange(12).view(2, 6)

    def wrap(how):
        monkeypatch.setattr(model, "_factory", lambda width: how(factory(width)))
        made = model.make(32)
        copied = copy_module(made)
        copied(ids).sum().backward()
        assert all(p.grad is not None for p in copied.parameters())
        return made

    def around(found):
        found.blocks[0] = Around(torch.compile(found.blocks[0]))
        return Around(torch.compile(found))

    def compile_forward(found):
        found.forward = torch.compile(found.forward, backend="eager")
        block = found.blocks[0]
        block.run = torch.compile(block.forward, backend="eager")
        block.forward = block.run
        return found

    def share(found):
        found.blocks[0] = torch.compile(found.blocks[0])
        found.blocks.append(found.blocks[0])
        found.dropout = torch.compile(torch.nn.Sequential())
        return torch.compile(torch.nn.DataParallel(torch.compile(found)))

    bare = wrap(lambda found: found)
    for how in (torch.nn.DataParallel, compile_forward):
        found = wrap(how)
        assert [name for name, _ in found.named_parameters()] == list(dict(bare.named_parameters()))
        assert torch.equal(found(ids), bare(ids))
    shared = wrap(share)
    assert shared.blocks[0] is shared.blocks[1]
    assert type(shared.dropout) is torch.nn.Sequential
    assert type(shared.blocks[1]) is type(bare.blocks[0])
    kept = wrap(around)
    assert (type(kept), type(kept.inner)) == (Around, type(bare))
    assert type(kept.inner.blocks[0]) is Around
    assert type(kept.inner.blocks[0].inner) is type(bare.blocks[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
def test_scripted_parts_of_a_model_are_kept(own_file, monkeypatch):
    model = load_study(own_file).own_model
    factory = model._factory

    def make(width):
        found = factory(width)
        found.blocks.append(torch.jit.script(torch.nn.GELU()))
        return found

    monkeypatch.setattr(model, "_factory", make)
    made = model.make(32)
    assert isinstance(made.blocks[-1], torch.jit.ScriptModule)
    copied = copy_module(made)
    copied(torch.arange(12).view(2, 6)).sum().backward()
    assert all(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in made.parameters())


def hold_in_a_partial(block):
    inner = block.forward
    block.forward = functools.partial(lambda x: inner(x))


def hold_in_a_list(block):
    held = [block.forward]
    block.forward = lambda x: held[0](x)


def hold_in_a_dict(block):
    held = {"forward": block.forward}
    block.forward = lambda x: held["forward"](x)


def hold_in_a_method(block):
    inner = block.forward
    block.forward = types.MethodType(lambda self, x: inner(x), block)


def hold_in_a_disabled(block):
    block.forward = torch.compiler.disable(block.forward)


def hold_beside_forward(block):
    block.run = torch.compiler.disable(block.forward)


def take_from_another(block):
    block.forward = type(block)(32).forward


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch.compiler imports
@pytest.mark.parametrize(
    "hold",
    [hold_in_a_partial, hold_in_a_list, hold_in_a_dict, hold_in_a_method, hold_in_a_disabled,
     hold_beside_forward, take_from_another],
)  # fmt: skip
def test_a_method_that_copies_would_share_is_refused(own_file, monkeypatch, hold):
    model = load_study(own_file).own_model
    factory = model._factory

    def make(width):
        found = factory(width)
        hold(found.blocks[0])
        return found

    monkeypatch.setattr(model, "_factory", make)
    with pytest.raises(ModuleError, match=r"blocks\.0 has a \w+, set on the instance, that is no"):
        model.make(32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch.compiler imports
def test_methods_bound_to_their_module_are_taken_and_functions_kept_from_compilation(
    own_file, monkeypatch
):
    model = load_study(own_file).own_model
    factory = model._factory

    def plain(self, x):
        return type(self).forward(self, x)

    disabled = torch.compiler.disable(torch.nn.functional.gelu)

    def make(width):
        found = factory(width)
        found.forward = functools.partial(found.forward)
        found.blocks[0].forward = types.MethodType(plain, found.blocks[0])
        found.act = disabled
        return found

    monkeypatch.setattr(model, "_factory", make)
    made = model.make(32)
    assert made.act is disabled
    copied = copy_module(made)
    copied(torch.arange(12).view(2, 6)).sum().backward()
    assert all(p.grad is not None for p in copied.parameters())


def test_a_complex_weight_takes_the_memory_of_two_numbers(own_file, monkeypatch):
    change(own_file, (':make"', ':make"\nroles = {"offset" = "bias"}'))

    def measure(dtype):
        model = OwnModel(load_study(own_file))
        factory = model._factory

        def make(width):
            found = factory(width)
            found.offset = torch.nn.Parameter(torch.zeros(width, dtype=dtype))
            return found

        monkeypatch.setattr(model, "_factory", make)
        return model.measure_memory(16)

    assert measure(torch.cfloat) - measure(torch.float) == 24 * 16
