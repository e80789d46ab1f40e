"""Checkpoints compressed matrix by matrix: the same bits as in memory, whoever does it and whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import psutil
import pytest
import torch
import transformers
from dask.distributed import Client, LocalCluster
from saboteur import Saboteur
from safetensors.torch import load_file, save_file
from tiny import albert, answer, batch, bert, family
from tnmpo.integrations.transformers import MPOConfig, calibrate, compress, load, sharded
from tnmpo.integrations.transformers.acceptability import word_tokenizer
from tnmpo.integrations.transformers.sharded import compress_checkpoint

TESTS = Path(__file__).parent
MODELS = {
    "llama": lambda: family("llama", "LlamaForCausalLM"),
    "tied llama": lambda: family("llama", "LlamaForCausalLM", tie_word_embeddings=True),
    "albert masked": lambda: albert("AlbertForMaskedLM"),
    "gpt2": lambda: family("gpt2", "GPT2LMHeadModel"),
}
SETTINGS = {
    "shared low-rank budget": {"ratio": 0.5, "shape": "low_rank"},
    "shared budget": {"ratio": 0.5},
    "shared interleaved budget": {"ratio": 0.5, "shape": "interleaved"},
    "rank": {"rank": 3, "shape": "interleaved"},
    "tolerance": {"tol": 0.3},
    "lossless": {},
}
RATIO = MPOConfig(ratio=0.5, target_modules="all-linear")
N_LLAMA = 14


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def tensors(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def assert_same_tensors(folder, other):
    ours, theirs = tensors(folder), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A sharded checkpoint, and the folder that ``compress`` and ``save_pretrained`` make of it."""
    folder = tmp_path_factory.mktemp("llama")
    model = MODELS["llama"]()
    model.save_pretrained(folder / "dense", max_shard_size="4KB")
    compress(model, RATIO)
    model.save_pretrained(folder / "small", max_shard_size="6KB")
    assert len(list((folder / "dense").glob("*.safetensors"))) > 3
    return folder


# --- the same as in memory


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_files_are_those_of_the_compressed_model(kind, settings, tmp_path):
    model = MODELS[kind]()
    model.save_pretrained(tmp_path / "dense", max_shard_size="6KB")
    # of the tied models the embedding too
    targets = r".*(word_embeddings|embed_tokens|proj|ffn|wte|c_fc)"
    config = MPOConfig(**SETTINGS[settings], target_modules=targets)
    report = compress_checkpoint(tmp_path / "dense", tmp_path / "ours", config, max_shard_size="6KB")
    expected = compress(model, config)
    model.save_pretrained(tmp_path / "small", max_shard_size="6KB")
    assert files(tmp_path / "ours") == files(tmp_path / "small")
    assert report.to_dict() == expected.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "ours", "small"]


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_loaded_as_any_compressed_model(kind, tmp_path):
    model = MODELS[kind]()
    model.save_pretrained(tmp_path / "dense")
    compress_checkpoint(tmp_path / "dense", tmp_path / "ours", RATIO, max_shard_size="6KB")
    compress(model, RATIO)
    assert torch.equal(answer(load(tmp_path / "ours")), answer(model))
    stock = type(model).from_pretrained(tmp_path / "ours")
    assert torch.equal(answer(stock), answer(model))


@pytest.mark.parametrize("settings", ["shared budget", "tolerance", "rank"])
def test_errors_are_weighted_by_a_calibration(settings, tmp_path):
    model = bert("BertForMaskedLM")
    model.save_pretrained(tmp_path / "dense")
    calibration = calibrate(model, [batch()])
    config = MPOConfig(**SETTINGS[settings])
    report = compress_checkpoint(tmp_path / "dense", tmp_path / "ours", config, calibration=calibration)
    assert report.to_dict() == compress(model, config, calibration).to_dict()
    assert any(module.weighted for module in report.modules)
    model.save_pretrained(tmp_path / "small")
    assert files(tmp_path / "ours") == files(tmp_path / "small")


def test_half_precision(tmp_path):
    model = MODELS["llama"]().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    report = compress_checkpoint(tmp_path / "dense", tmp_path / "ours", RATIO)
    assert report.to_dict() == compress(model, RATIO).to_dict()
    model.save_pretrained(tmp_path / "small")
    assert files(tmp_path / "ours") == files(tmp_path / "small")


def test_names_without_the_prefix_of_the_base_model(tmp_path):
    model = MODELS["albert masked"]()
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    save_file({name.removeprefix("albert."): value for name, value in load_file(path).items()}, path, {"format": "pt"})
    compress_checkpoint(tmp_path / "dense", tmp_path / "ours", MPOConfig(ratio=0.5))
    compress(model, MPOConfig(ratio=0.5))
    model.save_pretrained(tmp_path / "small")
    assert files(tmp_path / "ours") == files(tmp_path / "small")


def test_tied_weights_may_be_stored_twice_or_under_the_other_name(tmp_path):
    model = MODELS["tied llama"]()
    config = MPOConfig(ratio=0.5, target_modules=["embed_tokens", "q_proj"])
    model.save_pretrained(tmp_path / "dense")
    path = tmp_path / "dense" / "model.safetensors"
    stored = load_file(path)
    table = stored.pop("model.embed_tokens.weight")
    compress(model, config)
    model.save_pretrained(tmp_path / "small")
    for number, twins in enumerate(({"model.embed_tokens.weight": table.clone()}, {})):
        save_file({**stored, "lm_head.weight": table, **twins}, path, {"format": "pt"})
        compress_checkpoint(tmp_path / "dense", tmp_path / f"ours {number}", config)
        assert files(tmp_path / f"ours {number}") == files(tmp_path / "small")
    save_file({**stored, "lm_head.weight": table, "model.embed_tokens.weight": 2 * table}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight and model\.embed_tokens\.weight are tied by config\.json"):
        compress_checkpoint(tmp_path / "dense", tmp_path / "ours", config)


def test_weights_that_transformers_converts_stay_dense(tmp_path, caplog):
    model = family("mixtral", "MixtralForCausalLM")
    model.save_pretrained(tmp_path / "dense")
    config = MPOConfig(ratio=0.5, target_modules=["q_proj", "o_proj"])
    report = compress_checkpoint(tmp_path / "dense", tmp_path / "ours", config)
    assert report.to_dict() == compress(model, config).to_dict()
    model.save_pretrained(tmp_path / "small")
    assert_same_tensors(tmp_path / "ours", tmp_path / "small")
    assert any("experts" in weight.name for weight in report.uncovered)
    assert torch.equal(answer(load(tmp_path / "ours")), answer(model))


def test_the_tokenizer_and_the_card_come_along(tmp_path):
    model = MODELS["llama"]()
    model.save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "training.log").write_text("of the dense model")
    compress_checkpoint(tmp_path / "dense", tmp_path / "ours", RATIO)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("these dogs")["input_ids"] == word_tokenizer()("these dogs")["input_ids"]
    assert "import tnmpo.integrations.transformers" in (tmp_path / "ours" / "README.md").read_text()
    assert not (tmp_path / "ours" / "training.log").exists()


# --- who does it


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


def test_workers_of_a_cluster_by_its_address(cluster, llama, tmp_path):
    compress_checkpoint(
        llama / "dense", tmp_path / "ours", RATIO, cluster=cluster.scheduler_address, max_shard_size="6KB"
    )
    assert files(tmp_path / "ours") == files(llama / "small")


def test_a_cluster_of_its_own(llama, tmp_path):
    compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, cluster="local", workers=1, max_shard_size="6KB")
    assert files(tmp_path / "ours") == files(llama / "small")


def test_an_error_of_a_worker_arrives_by_its_name(client, tmp_path):
    model = MODELS["llama"]()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"the weight of model\.layers\.1\.mlp\.up_proj holds NaN or Inf"):
        compress_checkpoint(tmp_path / "dense", tmp_path / "ours", RATIO, cluster=client)
    assert not (tmp_path / "ours").exists()


# --- who dies


@pytest.fixture
def sabotage(client, tmp_path):
    """Let a worker send a signal to a process, itself if there is none, when something is done and something is not."""

    def register(victim, number):
        client.register_plugin(Saboteur(victim, number, tmp_path / "marker"))

    yield register
    client.wait_for_workers(2)
    client.unregister_worker_plugin("saboteur")
    assert (tmp_path / "marker").exists()


def test_a_killed_worker_changes_nothing(client, sabotage, llama, tmp_path):
    pids = client.run(os.getpid).values()
    sabotage(None, signal.SIGKILL)
    compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, cluster=client, max_shard_size="6KB")
    assert sum(psutil.pid_exists(pid) for pid in pids) == 1
    assert files(tmp_path / "ours") == files(llama / "small")


def test_a_matrix_that_workers_die_of_is_named_and_the_rest_is_kept(cluster, client, sabotage, llama, tmp_path):
    allowed, cluster.scheduler.allowed_failures = cluster.scheduler.allowed_failures, 0
    sabotage(None, signal.SIGKILL)
    try:
        with pytest.raises(RuntimeError, match=r"model\.layers\.\d\.\w+\.\w+: the workers that had it died"):
            compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, cluster=client)
    finally:
        cluster.scheduler.allowed_failures = allowed
    assert_goes_on(client, llama, tmp_path)


def test_a_second_start_goes_on_after_ctrl_c(client, sabotage, llama, tmp_path):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        sabotage(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, cluster=client)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert_goes_on(client, llama, tmp_path)


def test_a_second_start_goes_on_after_the_first_was_killed(cluster, client, sabotage, llama, tmp_path):
    arguments = (llama / "dense", tmp_path / "ours", cluster.scheduler_address)
    driver = subprocess.Popen([sys.executable, TESTS / "sharded_driver.py", *arguments])
    sabotage(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert_goes_on(client, llama, tmp_path)


def n_executing(dask_worker):
    return len(dask_worker.state.executing)


def assert_goes_on(client, llama, folder):
    """Start again: what has a part is not done again, and the result is the same."""
    deadline = time.monotonic() + 20
    # what was under way when nobody waited for it any more: the scheduler has forgotten it, the workers have not
    while any(client.processing().values()) or any(client.run(n_executing).values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (folder / "ours").exists()
    before = {name: len(list((folder / "ours.parts").glob(f"*.{name}.safetensors"))) for name in ("survey", "cores")}
    assert before["survey"] + before["cores"] > 0
    assert before["cores"] < N_LLAMA
    with counted_calls() as done:
        compress_checkpoint(llama / "dense", folder / "ours", RATIO, max_shard_size="6KB")
    assert done["survey"] == (0 if before["cores"] else N_LLAMA - before["survey"])
    assert done["cut"] == N_LLAMA - before["cores"]
    assert files(folder / "ours") == files(llama / "small")
    assert not (folder / "ours.parts").exists()


@contextmanager
def counted_calls():
    """How often something is done to a matrix, by its name, in this process."""
    done = {"survey": 0, "cut": 0}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in done:
            monkeypatch.setattr(sharded, name, _counted(getattr(sharded, name), name, done))
        yield done


def _counted(act, name, done):
    def counted(job):
        done[name] += 1
        act(job)

    return counted


class Stop(Exception):
    pass


def stop_after(monkeypatch, name, count):
    """Let the act fail as it is called once more."""
    act = getattr(sharded, name)
    done = {name: 0}

    def stopping(job):
        if done[name] == count:
            raise Stop
        _counted(act, name, done)(job)

    monkeypatch.setattr(sharded, name, stopping)


@pytest.fixture
def stopped(llama, tmp_path):
    """The folder of a run that was stopped after three cuts."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, "cut", 3)
        with pytest.raises(Stop):
            compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO)
    assert len(list((tmp_path / "ours.parts").glob("*.cores.safetensors"))) == 3
    return tmp_path


def test_parts_that_are_whole_are_used(stopped, llama):
    # a part cut short by a crash of the machine is done again
    path = min((stopped / "ours.parts").glob("*.cores.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with counted_calls() as done:
        compress_checkpoint(llama / "dense", stopped / "ours", RATIO, max_shard_size="6KB")
    assert done == {"survey": 0, "cut": N_LLAMA - 2}
    assert files(stopped / "ours") == files(llama / "small")


def test_parts_of_another_run_are_refused(stopped, llama):
    with pytest.raises(ValueError, match=r"ours\.parts holds parts of another run \(config differ\); remove it"):
        compress_checkpoint(llama / "dense", stopped / "ours", MPOConfig(ratio=0.4, target_modules="all-linear"))
    calibration = calibrate(MODELS["llama"](), [batch()])
    with pytest.raises(ValueError, match=r"parts of another run \(calibration differ\)"):
        compress_checkpoint(llama / "dense", stopped / "ours", RATIO, calibration=calibration)
    shutil.copytree(llama / "dense", stopped / "touched", copy_function=shutil.copy)  # with another time
    with pytest.raises(ValueError, match=r"parts of another run \(source differ\)"):
        compress_checkpoint(stopped / "touched", stopped / "ours", RATIO)
    (stopped / "ours.parts" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds parts of another run"):
        compress_checkpoint(llama / "dense", stopped / "ours", RATIO)


def test_a_source_that_changes_meanwhile_is_refused(llama, tmp_path, monkeypatch):
    shutil.copytree(llama / "dense", tmp_path / "dense")
    path = min((tmp_path / "dense").glob("*.safetensors"))
    stop_after(monkeypatch, "cut", N_LLAMA)  # all of them are cut
    original = sharded._run

    def touching(*arguments):
        original(*arguments)
        path.touch()

    monkeypatch.setattr(sharded, "_run", touching)
    with pytest.raises(ValueError, match=rf"source: .*{path.name} changed during the run; start again"):
        compress_checkpoint(tmp_path / "dense", tmp_path / "ours", RATIO)
    assert not (tmp_path / "ours").exists()


# --- memory


def test_memory_stays_that_of_one_matrix(tmp_path):
    widths = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 2}
    for layers in (1, 8):
        model = family("llama", "LlamaForCausalLM", **widths, head_dim=256, num_hidden_layers=layers)
        model.save_pretrained(tmp_path / str(layers), max_shard_size="20MB")
    size = sum(path.stat().st_size for path in (tmp_path / "8").glob("*.safetensors"))
    matrix = 4 * 512 * 512
    assert size > 56 * matrix
    run = subprocess.run(
        [sys.executable, TESTS / "sharded_memory.py", tmp_path / "1", tmp_path / "8", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    # one shard of 4 MB, spectra and headers, and what the allocator keeps
    assert int(run.stdout) < 18 * matrix < size / 3


# --- what is refused


@pytest.fixture
def dense(llama, tmp_path):
    shutil.copytree(llama / "dense", tmp_path / "dense")
    return tmp_path / "dense"


def change_json(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def shard(folder):
    return min(folder.glob("*.safetensors"))


def cut_short(folder):
    shard(folder).write_bytes(shard(folder).read_bytes()[:-8])


def name_missing_tensor(folder):
    name = shard(folder).name
    change_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update(phantom=name))


def lose_tensor(folder):
    path = next(path for path in folder.glob("*.safetensors") if any("q_proj" in name for name in load_file(path)))
    kept = {name: value for name, value in load_file(path).items() if "layers.0.self_attn.q_proj" not in name}
    save_file(kept, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    change_json(index, lambda values: values["weight_map"].pop("model.layers.0.self_attn.q_proj.weight"))


def lose_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def config_of(**settings):
    return lambda folder: change_json(folder / "config.json", lambda values: values.update(settings))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: shard(folder).unlink(),
            r"source: .*dense lacks model-00001-of-\d+\.safetensors, which its index",
        ),
        (cut_short, r"source: .*model-00001-of-\d+\.safetensors is damaged or cut short"),
        (name_missing_tensor, r"index\.json says that phantom is in model-00001-of-\d+\.safetensors, which does not"),
        (lose_tensor, r"source: .*dense lacks the weight of model\.layers\.0\.self_attn\.q_proj; get it anew"),
        (lose_weights, r"source: .*dense has neither model\.safetensors nor model\.safetensors\.index\.json"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
            r"is no index of a checkpoint \(KeyError\('weight_map'\)\)",
        ),
        (config_of(intermediate_size=23), r"mlp\.\w+\.weight in .* has shape .*24.*, config\.json says .*23"),
        (config_of(architectures=["Nothing"]), r"config\.json names the class 'Nothing'"),
        (config_of(quantization_config={"quant_method": "mpo"}), r"source: .*dense is quantized already"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(dense, tmp_path, damage, message):
    damage(dense)
    with pytest.raises(ValueError, match=message):
        compress_checkpoint(dense, tmp_path / "ours", RATIO)
    assert not (tmp_path / "ours").exists()


def test_wrong_arguments(llama, tmp_path):
    with pytest.raises(TypeError, match=r"config: got dict, expected an MPOConfig"):
        compress_checkpoint(llama / "dense", tmp_path / "ours", {"ratio": 0.5})
    with pytest.raises(ValueError, match=r"output: .*dense exists; name a new folder"):
        compress_checkpoint(llama / "dense", llama / "dense", RATIO)
    for arguments in ({"workers": 2}, {"workers": 0, "cluster": "local"}):
        with pytest.raises(
            ValueError, match=r"workers: got \d with cluster=.*, expected a positive number with 'local'"
        ):
            compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, **arguments)
    with pytest.raises(ValueError, match=r"calibration: it knows none of the targeted modules"):
        compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, calibration=calibrate(bert(), [batch()]))
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(ConnectionError, match=r"cluster: no scheduler answers at 'tcp://127\.0\.0\.1:9'"),
    ):
        compress_checkpoint(llama / "dense", tmp_path / "ours", RATIO, cluster="tcp://127.0.0.1:9")
