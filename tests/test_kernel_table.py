"""`zoo bench kernels`: every kernel has its row, the bad ones too, and what is best here is what auto means."""

import json
from dataclasses import replace

import pytest

import zoo as library
from zoo.errors import UsageError
from zoo.models.build import ModelSpec, open_model
from zoo.models.kernel_verdicts import PLAIN, KernelRow, fastest, keep_verdict, slower, verdict_of
from zoo.registry.lookup import default_registry
from zoo.tasks.kernel_table import measure_kernels

NAME = "lm/llama-tiny"
DECODER = ModelSpec(NAME, weights=None)


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ZOO_STATE", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("xdg")))


def test_rows_say_speed_memory_and_error_against_the_model_as_it_was_built() -> None:
    table = measure_kernels(DECODER, ["int8", "float32"], batches=(1, 2), rounds=1)
    assert [row.kernel for row in table.rows] == [PLAIN, "kernels/int8", "float32"]
    plain, int8, exact = table.rows
    assert (plain.kl_nats, plain.agreement, plain.faster) == (0.0, 1.0, {1: 1.0, 2: 1.0})
    assert exact.kl_nats == pytest.approx(0, abs=1e-5)
    assert 0 < int8.kl_nats < 0.01
    assert int8.weight_bytes < 0.5 * plain.weight_bytes
    assert all(row.right and set(row.per_second) == {1, 2} and row.prefill_per_second > 0 for row in table.rows)
    assert verdict_of(NAME, "none") == table, "it is kept"
    assert verdict_of(NAME) is None, "for those weights alone"
    measure_kernels(DECODER, ["float32"], batches=(1,), rounds=1)
    assert "kernels/int8" in {row.kernel for row in verdict_of(NAME, "none").rows}, "what was not measured again stays"
    assert table.best.keys() == {1, 2}


def test_an_encoder_is_measured_by_its_vectors_and_what_does_not_run_says_why() -> None:
    table = measure_kernels(ModelSpec("timm/test_byobnet", weights=None), ["int8", "bf16"], batches=(2,), rounds=1)
    assert all(row.works or row.reason for row in table.rows)
    table = measure_kernels(ModelSpec("text/minilm-tiny", weights=None), ["int4"], batches=(1,), rounds=1)
    assert table.rows[1].cosine < 1


def test_auto_is_the_fastest_that_was_right_here() -> None:
    registry = default_registry()
    with pytest.raises(UsageError, match="nothing was: zoo bench kernels lm/llama-tiny --weights none"):
        open_model(NAME, weights=None, kernel="auto")
    table = measure_kernels(DECODER, ["int8", "bf16"], batches=(1,), rounds=1)
    rows = {row.kernel: row for row in table.rows}
    quick = replace(rows["kernels/bf16"], per_second={1: 1e9})
    wrong = replace(rows["kernels/int8"], per_second={1: 2e9}, kl_nats=1.0)
    keep_verdict(NAME, replace(table, rows=(rows[PLAIN], quick, wrong)), "none")
    assert fastest(NAME, registry, "none") == "kernels/bf16", "the faster one is wrong"
    assert open_model(NAME, weights=None, kernel="auto").kernel == "kernels/bf16"
    assert (
        library.generate("a", model=ModelSpec(NAME, weights=None, kernel="auto"), max_tokens=2).provenance.kernel
        == "kernels/bf16"
    )
    keep_verdict(NAME, replace(table, rows=(rows[PLAIN], replace(quick, identity="of another version"))), "none")
    with pytest.raises(UsageError, match="kernel kernels/bf16 was the fastest, and is another version now"):
        open_model(NAME, weights=None, kernel="auto")
    keep_verdict(NAME, replace(table, rows=(KernelRow(kernel=PLAIN, works=True, per_second={1: 1e12}),)), "none")
    assert fastest(NAME, registry, "none") is None
    assert open_model(NAME, weights=None, kernel="auto").kernel is None, "as it is built, which was the fastest"


def test_a_slow_choice_is_said_when_it_is_made(caplog) -> None:
    table = measure_kernels(DECODER, ["int8"], batches=(1,), rounds=1)
    keep_verdict(NAME, replace(table, rows=(table.rows[0], replace(table.rows[1], faster={1: 0.5}))), "none")
    assert slower(NAME, "kernels/bf16", default_registry(), "none") is None
    assert slower(NAME, "kernels/int8", default_registry()) is None, "of other weights"
    open_model(NAME, weights=None, kernel="int8")
    assert (
        "kernel kernels/int8 is 0.50 times as fast as none on this machine (zoo bench kernels lm/llama-tiny)" in caplog.text
    )


def test_the_command_prints_a_table_and_a_document(main) -> None:
    run = main("bench", "kernels", NAME, "--weights", "none", "--kernel", "int8", "--batch", "1", "--rounds", "1", "--json")
    document = json.loads(run.stdout)
    assert [row["kernel"] for row in document["results"]] == [PLAIN, "kernels/int8"]
    run = main("bench", "kernels", NAME, "--weights", "none", "--kernel", "int8", "--batch", "1", "--rounds", "1")
    assert run.stdout.splitlines()[0].split() == ["KERNEL", "1", "AT", "ONCE,", "/S", "READS/S", "WEIGHTS", "ERROR"]
    for arguments, message in (
        ((NAME, "--weights", "none", "--kernel", "int3"), "got 'int3'; did you mean"),
        ((NAME, "--weights", "none", "--rounds", "0"), "rounds and batches are at least 1"),
        (("perceiver/mlp-tiny",), "kernels are measured on decoder, encoder, dual_encoder"),
    ):
        run = main("bench", "kernels", *arguments)
        assert (run.returncode, message in run.stderr) == (2, True), run.stderr
