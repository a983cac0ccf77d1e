"""Probes in a study: stored beside the results, which they do not change."""

import math

import numpy as np

from hptransfer.study.config import ProbesConfig, load_study
from study.training import complete, read_rows

MEASURED = ("probe_steps", "probe_names", "probe_values")


def probe(study_file, every=None):
    section = "\n[probes]\n" + (f"every = {every}\n" if every else "")
    study_file.write_text(study_file.read_text() + section)


def test_probes_are_stored_and_change_no_result(study_file, finished, tmp_path):
    plain = read_rows(finished)
    assert all(row[column] is None for row in plain for column in MEASURED)
    probe(study_file, every=5)
    complete(study_file, tmp_path / "probed")
    rows = read_rows(tmp_path / "probed")
    for row, before in zip(rows, plain, strict=True):
        assert {**row, **dict.fromkeys(MEASURED)} == before
        values = np.reshape(row["probe_values"], (len(row["probe_steps"]), len(row["probe_names"])))
        if row["state"] == "completed":
            assert row["probe_steps"] == [0, 5, 10]
            loss = values[:, row["probe_names"].index("loss")]
            curve = dict(zip(row["curve_steps"], row["loss_curve"], strict=True))
            np.testing.assert_allclose(loss, [curve[step] for step in (0, 5, 10)], rtol=1e-5)
        else:
            assert all(step <= row["diverged_step"] for step in row["probe_steps"])
        assert row["spikes"] == 0  # twelve steps are too few to tell one
    rates = {row["id"]: row["probe_values"][row["probe_names"].index("lr")] for row in rows}
    for row in rows:  # the warmup of 12 steps takes 2
        assert math.isclose(rates[row["id"]], row["base_lr"] / 2, rel_tol=1e-6)


def test_a_study_with_probes_is_the_same_study(study_file, finished):
    before = load_study(study_file).identity()
    probe(study_file)
    config = load_study(study_file)
    assert config.identity() == before
    assert config.probes.every == ProbesConfig().every  # no part of what the study is
    assert complete(study_file, finished).groups == ()
