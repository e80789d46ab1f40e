"""Two processes under torchrun, on the CPU: DDP through MPOTrainer, and FSDP through torch's fully_shard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ddp_train
import pytest
import torch
from tnmpo.integrations.transformers.targets import mpo_layers

SCRIPT = Path(ddp_train.__file__)
SECONDS = 240


def torchrun(*arguments: object, seconds: float = SECONDS) -> None:
    """Run a script on two processes; when the time is up the launcher is told to end, and ends its workers."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    with subprocess.Popen(
        [*command, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launcher:
        try:
            output, _ = launcher.communicate(timeout=seconds)
        except BaseException:
            launcher.terminate()
            try:
                launcher.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                launcher.kill()
            raise
    assert launcher.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    torchrun(SCRIPT, folder)
    return folder


def read(folder, kind):
    return [torch.load(folder / f"{kind}-{rank}.pt", weights_only=False) for rank in (0, 1)]


def central_names(model):
    return {f"{name}.cores.{site}" for name, layer, _ in mpo_layers(model) for site in layer.central}


def test_replicas_are_equal_and_the_central_tensors_untouched(launched):
    first, second = read(launched, "ddp")
    assert first["wrapped"] == "DistributedDataParallel"
    assert first["teacher"] == "BertForSequenceClassification"
    start, _ = ddp_train.light_model()
    before = dict(start.named_parameters())
    central = central_names(start)
    assert set(first["parameters"]) == set(before)
    assert central < set(before)
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name
        assert parameter.requires_grad is (name not in central), name
        # the gradient of a key's bias vanishes
        if not name.endswith("key.bias"):
            assert torch.equal(parameter, before[name]) is (name in central), name


def test_two_processes_compute_what_one_does_with_double_batches(launched, tmp_path):
    first, second = read(launched, "ddp")
    alone = ddp_train.trainer(tmp_path, 1)
    loss = alone.train().training_loss
    # each process says the mean over its own examples
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(loss, rel=1e-5)
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(first["parameters"][name], parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_the_checkpoint_is_written_once_and_a_run_goes_on_from_it(launched, tmp_path):
    first, _ = read(launched, "ddp")
    folder = launched / "run"
    assert [path.name for path in folder.iterdir()] == [f"checkpoint-{ddp_train.STEPS}"]
    (checkpoint,) = folder.iterdir()
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["model.safetensors"]
    assert (checkpoint / "model.safetensors").stat().st_size < 1.2 * sum(
        parameter.nbytes for parameter in first["parameters"].values()
    ) + 10_000
    again = ddp_train.trainer(tmp_path, 1)
    central = central_names(again.model)
    again.train(resume_from_checkpoint=str(checkpoint))
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, first["parameters"][name]), name
        assert parameter.requires_grad is (name not in central), name


def test_a_sharded_model_trains_like_a_whole_one(launched):
    first, second = read(launched, "fsdp")
    whole, _ = ddp_train.light_model()
    central = central_names(whole)
    before = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    loss = ddp_train.plain_steps(whole, 0, 1)
    assert (first["loss"] + second["loss"]) / 2 == pytest.approx(loss, rel=1e-5)
    assert first["held"] + second["held"] == sum(parameter.numel() for parameter in whole.parameters())
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(first["parameters"][name], parameter.detach(), rtol=1e-4, atol=1e-6, msg=name)
        assert torch.equal(first["parameters"][name], second["parameters"][name]), name
        if name in central:
            assert torch.equal(first["parameters"][name], before[name]), name


def test_sharding_by_the_trainer_is_refused_where_it_would_not_happen(launched):
    """On the CPU Accelerate passes over the option without a word."""
    for process in read(launched, "fsdp"):
        assert process["refusal"].startswith("args.fsdp: Accelerate shards on accelerators only, and would train whole")
