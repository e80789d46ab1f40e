"""GLUE's files as GLUE writes them, small, in a temporary folder; nothing is downloaded."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from tnmpo.integrations.transformers.tasks import Split, Task, TaskData, get_task, load_task

NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
MNLI_HEADER = "index\tpromptID\tsentence1_binary_parse\tsentence1\tsentence2\tlabel1\tgold_label"

# task: folder, first line (None: no header), a row, its texts, its label, the dev file
LAYOUTS = {
    "cola": ("CoLA", None, "gj04\t0\t*\tThem left.", ("Them left.",), 0, "dev.tsv"),
    "sst2": ("SST-2", "sentence\tlabel", "a fine film \t1", ("a fine film ",), 1, "dev.tsv"),
    "mrpc": (
        "MRPC",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t702\t705\tHe left.\tHe went.",
        ("He left.", "He went."),
        1,
        "dev.tsv",
    ),
    "stsb": (
        "STS-B",
        STSB_HEADER,
        "0\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t4.800",
        ("A plane.", "An air plane."),
        4.8,
        "dev.tsv",
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "7\t1\t2\tWhy?\tHow so?\t1",
        ("Why?", "How so?"),
        1,
        "dev.tsv",
    ),
    "mnli": (
        "MNLI",
        MNLI_HEADER,
        "0\t3\t( a )\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        ("It rains.", "It is dry."),
        2,
        "dev_matched.tsv",
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tHe did.\tnot_entailment",
        ("Who?", "He did."),
        1,
        "dev.tsv",
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt rains.\tIt is wet.\tentailment",
        ("It rains.", "It is wet."),
        0,
        "dev.tsv",
    ),
    "wnli": (
        "WNLI",
        "index\tsentence1\tsentence2\tlabel",
        "0\tHe sat.\tBob sat.\t1",
        ("He sat.", "Bob sat."),
        1,
        "dev.tsv",
    ),
}


def write(folder: Path, rows: list[str], header: str | None, dev: str = "dev.tsv", train: str = "train.tsv") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*([header] if header else []), *rows]) + "\n"
    for file in (train, dev):
        (folder / file).write_text(text, encoding="utf-8")


def split(n: int) -> Split:
    return Split(tuple((str(i),) for i in range(n)), np.arange(n))


# --- the names


def test_every_task_is_known_by_its_name():
    for name in NAMES:
        task = get_task(name)
        assert task.name == name
        assert len(task.columns) == (1 if name in ("cola", "sst2") else 2)
        assert task.is_regression == (name == "stsb")
    assert [get_task(name).metric for name in NAMES] == [
        *("matthews", "accuracy", "f1", "spearman", "f1", "accuracy", "accuracy", "accuracy", "accuracy")
    ]
    assert get_task("mnli").n_labels == 3


def test_an_unknown_task_is_refused_with_the_names_and_the_nearest():
    with pytest.raises(ValueError, match=r"name is 'STS-B' \(did you mean 'stsb'\?\); pass one of cola, sst2, mrpc"):
        get_task("STS-B")
    with pytest.raises(ValueError, match=r"name is 'imagenet'; pass one of .*wnli"):
        load_task("imagenet")


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"metric is 'bleu'; pass one of accuracy, matthews, f1, spearman"):
        Task("mine", ("text",), 2, "bleu")


# --- the scores


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "score"),
    [
        ("sst2", [1, 0, 1, 1], [1, 0, 0, 1], 3 / 4),
        ("mnli", [2, 0, 1, 1], [2, 0, 1, 0], 3 / 4),
        ("mrpc", [1, 1, 0, 1], [1, 0, 1, 1], 2 / 3),  # precision and recall are 2/3
        ("qqp", [0, 0], [0, 0], 0.0),  # no positive anywhere: defined as 0, without a warning
        ("cola", [1, 1, 0, 0], [1, 0, 0, 0], 1 / 3**0.5),  # (tp tn - fp fn) / sqrt(2 * 1 * 3 * 2) = 2 / sqrt(12)
        ("cola", [1, 1, 1, 1], [1, 0, 1, 0], 0.0),
        ("stsb", [0.1, 0.2, 0.9], [1.0, 2.0, 5.0], 1.0),
        ("stsb", [0.3, 0.2, 0.9], [1.0, 2.0, 5.0], 0.5),  # 1 - 6 * 2 / (3 * 8)
        ("stsb", [3.0, 3.0, 3.0], [1.0, 2.0, 5.0], 0.0),  # scipy would warn and answer NaN
    ],
)
def test_scores_of_known_value(name, predictions, labels, score):
    got = get_task(name).score(predictions, labels)
    assert type(got) is float
    assert got == pytest.approx(score)


def test_logits_are_no_class_ids():
    with pytest.raises(
        ValueError, match=r"predictions have shape \(2, 2\) and labels \(2,\); pass one value per example"
    ):
        get_task("sst2").score([[0.1, 0.9], [0.8, 0.2]], [1, 0])
    with pytest.raises(TypeError, match=r"predictions of 'sst2' are float64; pass integer class ids"):
        get_task("sst2").score([0.9, 0.2], [1, 0])


def test_an_empty_or_diverged_prediction_is_refused():
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        get_task("sst2").score([], [])
    with pytest.raises(ValueError, match=r"predictions hold NaN or infinities"):
        get_task("stsb").score([np.nan, 1.0], [1.0, 2.0])


# --- parts of a split


def test_labels_and_texts_are_counted():
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) for 2 texts; pass one label per text"):
        Split((("a",), ("b",)), np.zeros(3))


def test_spread_takes_every_kth_of_the_whole_file():
    part = split(5749).spread(512)
    assert len(part) == 512
    assert part.labels.tolist() == list(range(0, 512 * 11, 11))
    assert part.texts[1] == ("11",)
    assert split(5).spread(5).labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("n", [0, 6])
def test_spread_refuses_what_the_split_has_not(n):
    with pytest.raises(ValueError, match=f"n is {n}; pass 1 to 5, the number of examples"):
        split(5).spread(n)


def test_hold_out_parts_the_split_and_repeats_itself():
    rest, held_out = split(100).hold_out(30, seed=1)
    assert sorted([*rest.labels, *held_out.labels]) == list(range(100))
    assert len(held_out) == 30
    assert held_out.labels.tolist() == sorted(held_out.labels)  # the order of the file
    assert held_out.labels.tolist() != list(range(30))
    assert held_out.texts == split(100).hold_out(30, seed=1)[1].texts
    assert held_out.texts != split(100).hold_out(30, seed=2)[1].texts


@pytest.mark.parametrize("n", [0, 5])
def test_hold_out_leaves_no_part_empty(n):
    with pytest.raises(ValueError, match=f"n is {n}; pass 1 to 4"):
        split(5).hold_out(n)


# --- local files


@pytest.mark.parametrize("name", NAMES)
def test_each_task_is_read_as_glue_writes_it(tmp_path, name):
    folder, header, row, texts, label, dev = LAYOUTS[name]
    write(tmp_path / folder, [row, row], header, dev)
    for data_dir in (tmp_path, tmp_path / folder, str(tmp_path)):
        data = load_task(name, data_dir)
        assert data.task == get_task(name)
        for part in (data.train, data.dev):
            assert part.texts == (texts, texts)
            assert part.labels.tolist() == [label, label]
            assert part.labels.dtype == (np.float64 if name == "stsb" else np.int64)


@pytest.mark.parametrize("folder", ["sst2", "SST-2", "SST2", "sst_2"])
def test_the_folder_may_be_spelt_as_one_likes(tmp_path, folder):
    write(tmp_path / folder, ["good\t1"], "sentence\tlabel")
    assert len(load_task("sst2", tmp_path).dev) == 1


def test_the_tasks_own_folder_goes_before_the_files_beside_it(tmp_path):
    write(tmp_path, ["beside\t1"], "sentence\tlabel")
    write(tmp_path / "SST-2", ["inside\t1"], "sentence\tlabel")
    assert load_task("sst2", tmp_path).train.texts == (("inside",),)


def test_the_original_sts_benchmark_is_read_with_its_rows_of_nine_columns(tmp_path):
    rows = ["main\tMSRvid\t2012\t1\t2.500\tA man.\tA boy.", "main\tMSRvid\t2012\t1\t5.000\tA cat.\tThe cat.\tweb\tweb"]
    write(tmp_path / "stsb", rows, None, dev="dev.csv", train="train.csv")
    data = load_task("stsb", tmp_path)
    assert data.train.texts == (("A man.", "A boy."), ("A cat.", "The cat."))
    assert data.dev.labels.tolist() == [2.5, 5.0]


def test_quote_characters_are_text(tmp_path):
    write(tmp_path, ['"open and never closed\t1', 'he said "no"\t0', "naïve café\t1"], "sentence\tlabel")
    data = load_task("sst2", tmp_path)
    assert [text for (text,) in data.train.texts] == ['"open and never closed', 'he said "no"', "naïve café"]
    assert data.train.labels.tolist() == [1, 0, 1]


def test_a_short_row_is_named_by_file_and_line(tmp_path):
    write(tmp_path, ["good\t1", "no label here"], "sentence\tlabel")
    with pytest.raises(ValueError, match=r"train\.tsv, line 3: 1 columns where at least 2 are needed; mend or remove"):
        load_task("sst2", tmp_path)


def test_blank_lines_are_passed_over(tmp_path):
    write(tmp_path, ["good\t1", "", "bad\t0", ""], "sentence\tlabel")
    assert load_task("sst2", tmp_path).train.labels.tolist() == [1, 0]


def test_the_torn_rows_of_qqp_are_dropped(tmp_path):
    header, row = LAYOUTS["qqp"][1:3]
    write(tmp_path, [row, "8\t1\t2\tWhy", "not?\tHow so?\t0", row], header)
    assert load_task("qqp", tmp_path).train.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("sst2", "good\tyes", r"dev\.tsv, line 2: the label is 'yes'; it must be one of 0, 1"),
        ("rte", "0\ta\tb\tneutral", r"the label is 'neutral'; it must be one of entailment, not_entailment"),
        ("stsb", "0\tn\tf\t1\t1\tn\tn\ta\tb\tmuch", r"the label is 'much'; it must be a number"),
    ],
)
def test_a_wrong_label_is_named_by_file_and_line(tmp_path, name, row, message):
    _, header, right, *_ = LAYOUTS[name]
    write(tmp_path, [row], header)
    write(tmp_path, [right], header, dev="train.tsv")
    with pytest.raises(ValueError, match=message):
        load_task(name, tmp_path)


def test_files_of_another_task_are_noticed(tmp_path):
    write(tmp_path, ["good\t1"], "sentence\tlabel")
    with pytest.raises(
        ValueError, match=r"train\.tsv, line 1: no column sentence1, sentence2 in sentence, label; pass"
    ):
        load_task("rte", tmp_path)


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_missing_files_are_told_with_the_paths_looked_for(tmp_path, folder):
    with pytest.raises(ValueError, match=r"no files of 'stsb'.*leave data_dir out to download them") as caught:
        load_task("stsb", tmp_path / folder)
    for path in (Path("stsb"), Path("train.tsv"), Path("train.csv")):
        assert str(tmp_path / folder / path) in str(caught.value)


def test_a_folder_without_its_dev_file_is_no_task(tmp_path):
    write(tmp_path / "SST-2", ["good\t1"], "sentence\tlabel")
    (tmp_path / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(ValueError, match=r"SST-2.train\.tsv with dev\.tsv"):
        load_task("sst2", tmp_path)


# --- the hub, without it


def hub(part: dict[str, list[object]], **parts: dict[str, list[object]]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(rows) for name, rows in {"train": part, **parts}.items()}
    )


def test_without_a_folder_the_hub_is_asked(monkeypatch):
    asked = []
    train = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}
    dev = {"premise": ["e"], "hypothesis": ["f"], "label": [1], "idx": [0]}

    def load_dataset(*args: str) -> datasets.DatasetDict:
        asked.append(args)
        return hub(train, validation_matched=dev)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_task("mnli")
    assert isinstance(data, TaskData)
    assert asked == [("nyu-mll/glue", "mnli")]
    assert data.train.texts == (("a", "c"), ("b", "d"))
    assert data.train.labels.tolist() == [2, 0]
    assert data.dev.texts == (("e", "f"),)


def test_single_sentences_and_scores_from_the_hub(monkeypatch):
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [2.5]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: hub(rows, validation=rows))
    assert load_task("stsb").dev.labels.tolist() == [2.5]
    rows = {"sentence": ["a"], "label": [1]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: hub(rows, validation=rows))
    assert load_task("sst2").train.texts == (("a",),)


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Couldn't find cache")])
def test_an_unreachable_hub_says_to_pass_data_dir(monkeypatch, error):
    def load_dataset(*_: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"'sst2' could not be had from the Hugging Face hub .*; pass data_dir"
    ) as caught:
        load_task("sst2")
    assert caught.value.__cause__ is error
