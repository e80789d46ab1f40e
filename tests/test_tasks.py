"""GLUE's files as GLUE writes them, small, in a temporary folder; nothing is downloaded."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from tnmpo.integrations.transformers.tasks import Split, Task, TaskData, get_task, load_task

NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")

STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
MNLI_COLUMNS = ("index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse")
MNLI_COLUMNS += ("sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1")
MNLI_HEADER = "\t".join([*MNLI_COLUMNS, "gold_label"])
MNLI_DEV_HEADER = "\t".join([*MNLI_COLUMNS, "label2", "label3", "label4", "label5", "gold_label"])
MNLI_START = "0\t3\t3c\tslate\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tIt rains.\tIt is dry.\tneutral\t"
DEV_FILES = {"mnli": ("dev_matched.tsv", "dev_mismatched.tsv")}

# task: folder, first line (None: no header), a row, its texts, its label
LAYOUTS = {
    "cola": ("CoLA", None, "gj04\t0\t*\tThem left.", ("Them left.",), 0),
    "sst2": ("SST-2", "sentence\tlabel", "a fine film \t1", ("a fine film ",), 1),
    "mrpc": (
        "MRPC",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "1\t702\t705\tHe left.\tHe went.",
        ("He left.", "He went."),
        1,
    ),
    "stsb": (
        "STS-B",
        STSB_HEADER,
        "0\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t4.800",
        ("A plane.", "An air plane."),
        4.8,
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "7\t1\t2\tWhy?\tHow so?\t1",
        ("Why?", "How so?"),
        1,
    ),
    "mnli": (
        "MNLI",
        MNLI_HEADER,
        MNLI_START + "contradiction",
        ("It rains.", "It is dry."),
        2,
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel",
        "0\tWho?\tHe did.\tnot_entailment",
        ("Who?", "He did."),
        1,
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel",
        "0\tIt rains.\tIt is wet.\tentailment",
        ("It rains.", "It is wet."),
        0,
    ),
    "wnli": (
        "WNLI",
        "index\tsentence1\tsentence2\tlabel",
        "0\tHe sat.\tBob sat.\t1",
        ("He sat.", "Bob sat."),
        1,
    ),
}


def write(folder: Path, rows: list[str], header: str | None, *files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*([header] if header else []), *rows]) + "\n"
    for file in files or ("train.tsv", "dev.tsv"):
        (folder / file).write_text(text, encoding="utf-8")


def write_task(folder: Path, name: str, rows: list[str] | None = None) -> None:
    """A task's files as GLUE has them: MNLI's dev files have the labels of five annotators, its train file has one."""
    _, header, row, *_ = LAYOUTS[name]
    rows = rows or [row, row]
    if name != "mnli":
        write(folder, rows, header)
        return
    write(folder, rows, header, "train.tsv")
    five = [row.replace("\tneutral\t", "\tneutral" + "\tcontradiction" * 4 + "\t") for row in rows]
    write(folder, five, MNLI_DEV_HEADER, *DEV_FILES[name])


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
    with pytest.raises(ValueError, match=r"metric is 'bleu'; pass one of accuracy, matthews, f1, spearman, pearson"):
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


@pytest.mark.parametrize(
    ("name", "predictions", "labels", "scores"),
    [
        ("mrpc", [1, 1, 1, 0], [1, 1, 0, 0], {"f1": 4 / 5, "accuracy": 3 / 4}),
        ("qqp", [0, 0, 0, 0], [0, 1, 0, 0], {"f1": 0.0, "accuracy": 3 / 4}),
        ("stsb", [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], {"spearman": 1.0, "pearson": 1.0}),
        ("stsb", [1.0, 2.0, 3.0], [0.0, 0.0, 3.0], {"spearman": 0.75**0.5, "pearson": 0.75**0.5}),
        ("stsb", [1.0, 1.0, 1.0], [0.0, 1.0, 3.0], {"spearman": 0.0, "pearson": 0.0}),
        ("cola", [1, 0], [1, 0], {"matthews": 1.0}),
        ("mnli", [2, 0], [2, 1], {"accuracy": 1 / 2}),
    ],
)
def test_every_metric_that_glue_reports_is_given(name, predictions, labels, scores):
    got = get_task(name).scores(predictions, labels)
    assert list(got) == list(scores)
    assert got == pytest.approx(scores)
    assert next(iter(got.values())) == get_task(name).score(predictions, labels)


def test_a_monotone_answer_that_is_not_linear_has_a_lower_pearson():
    got = get_task("stsb").scores([1.0, 2.0, 3.0], [1.0, 2.0, 5.0])
    assert got["spearman"] == 1.0
    assert got["pearson"] == pytest.approx(4 / (2 * 26 / 3) ** 0.5)  # deviations -1, 0, 1 and -5/3, -2/3, 7/3


@pytest.mark.parametrize(
    ("name", "labels", "score"),
    [
        ("wnli", [0] * 40 + [1] * 31, 40 / 71),  # GLUE's own dev split
        ("mrpc", [1] * 279 + [0] * 129, 2 * 279 / (279 + 408)),  # recall 1, precision 279/408
        ("mnli", [0, 1, 1, 2], 1 / 2),
        ("cola", [1, 1, 0], 0.0),
        ("stsb", [1.0, 2.0], 0.0),
    ],
)
def test_the_score_of_the_majority_class(name, labels, score):
    part = Split((("a",),) * len(labels), np.array(labels))
    assert get_task(name).majority_score(part) == pytest.approx(score)


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
    folder, _, _, texts, label = LAYOUTS[name]
    write_task(tmp_path / folder, name)
    for data_dir in (tmp_path, tmp_path / folder, str(tmp_path)):
        data = load_task(name, data_dir)
        assert data.task == get_task(name)
        assert [f"{part}.tsv" for part in data.dev_splits] == [*DEV_FILES.get(name, ("dev.tsv",))]
        for part in (data.train, *data.dev_splits.values()):
            assert part.texts == (texts, texts)
            assert part.labels.tolist() == [label, label]
            assert part.labels.dtype == (np.float64 if name == "stsb" else np.int64)


def test_all_nine_tasks_lie_in_one_folder(tmp_path):
    for name, (folder, *_) in LAYOUTS.items():
        write_task(tmp_path / folder, name)
    data = {name: load_task(name, tmp_path) for name in NAMES}
    assert {name: part.train.texts[0] for name, part in data.items()} == {name: LAYOUTS[name][3] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_windows_line_ends_and_byte_order_marks_are_no_text(tmp_path, name):
    texts, label = LAYOUTS[name][3:]
    write_task(tmp_path, name)
    for path in tmp_path.iterdir():
        text = path.read_text(encoding="utf-8").removeprefix("\ufeff")
        path.write_bytes(("\ufeff" + text).replace("\n", "\r\n").encode())
    data = load_task(name, tmp_path)
    for part in (data.train, *data.dev_splits.values()):
        assert part.texts == (texts, texts)
        assert part.labels.tolist() == [label, label]


def test_both_dev_files_of_mnli_are_read(tmp_path):
    write_task(tmp_path / "MNLI", "mnli")
    write(tmp_path / "MNLI", [MNLI_START + "x\tx\tx\tx\tentailment"], MNLI_DEV_HEADER, "dev_mismatched.tsv")
    data = load_task("mnli", tmp_path)
    assert data.dev.labels.tolist() == [2, 2]
    assert data.dev_mismatched.labels.tolist() == [0]
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(ValueError, match=r"train\.tsv with dev_matched\.tsv and dev_mismatched\.tsv"):
        load_task("mnli", tmp_path)


def test_examples_are_held_out_of_train_alone(tmp_path):
    write_task(tmp_path, "sst2", [f"film {k}\t{k % 2}" for k in range(20)])
    whole, data = load_task("sst2", tmp_path), load_task("sst2", tmp_path, hold_out=5, seed=3)
    assert whole.validation is None
    assert len(whole.train) == 20
    assert (len(data.train), len(data.validation), data.dev.texts) == (15, 5, whole.dev.texts)
    assert {*data.train.texts, *data.validation.texts} == {*whole.train.texts}
    assert data.validation.texts == load_task("sst2", tmp_path, hold_out=5, seed=3).validation.texts
    assert data.validation.texts != load_task("sst2", tmp_path, hold_out=5, seed=4).validation.texts
    with pytest.raises(ValueError, match=r"hold_out: n is 20; pass 1 to 19"):
        load_task("sst2", tmp_path, hold_out=20)


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
    write(tmp_path / "stsb", rows, None, "dev.csv", "train.csv")
    data = load_task("stsb", tmp_path)
    assert data.train.texts == (("A man.", "A boy."), ("A cat.", "The cat."))
    assert data.dev.labels.tolist() == [2.5, 5.0]


def test_quote_characters_are_text(tmp_path):
    write(tmp_path, ['"open and never closed\t1', 'he said "no"\t0', "naïve café\t1"], "sentence\tlabel")
    data = load_task("sst2", tmp_path)
    assert [text for (text,) in data.train.texts] == ['"open and never closed', 'he said "no"', "naïve café"]
    assert data.train.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_row_of_another_length_is_named_by_file_and_line(tmp_path, name, change):
    _, header, row, *_ = LAYOUTS[name]
    cells = row.split("\t")
    wrong = "\t".join(cells[:-1] if change < 0 else [*cells, "more"])
    write_task(tmp_path, name)
    write(tmp_path, [row, wrong], header, "train.tsv")
    if name == "qqp" and change < 0:
        assert len(load_task(name, tmp_path).train) == 1  # torn rows are dropped
        return
    line, n = (3 if header else 2), len(cells)
    with pytest.raises(
        ValueError, match=rf"train\.tsv, line {line}: {n + change} columns, expected {n} \(.*; mend or remove the line"
    ):
        load_task(name, tmp_path)


def test_the_original_sts_benchmark_may_have_two_columns_more_but_not_three(tmp_path):
    row = "main\tMSRvid\t2012\t1\t2.500\tA man.\tA boy."
    write(tmp_path, [row, row + "\ta\tb\tc"], None, "train.csv", "dev.csv")
    with pytest.raises(ValueError, match=r"train\.csv, line 2: 10 columns, expected 7 to 9 \(genre, file"):
        load_task("stsb", tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qqp"])
def test_an_empty_text_is_named_by_file_and_line(tmp_path, name):
    _, header, row, texts, _ = LAYOUTS[name]
    write_task(tmp_path, name)
    write(tmp_path, [row, row.replace(texts[-1], " ")], header, "train.tsv")
    with pytest.raises(ValueError, match=rf"line {3 if header else 2}: the text of column .* is empty; mend or remove"):
        load_task(name, tmp_path)


def test_the_empty_questions_of_qqp_are_kept(tmp_path):
    write_task(tmp_path, "qqp", ["7\t1\t2\tHow can I develop android app?\t\t0"])
    assert load_task("qqp", tmp_path).train.texts == (("How can I develop android app?", ""),)


def test_files_without_examples_or_in_another_encoding_are_refused(tmp_path):
    write(tmp_path, [], "sentence\tlabel")
    with pytest.raises(ValueError, match=r"train\.tsv: no examples; pass a data_dir"):
        load_task("sst2", tmp_path)
    (tmp_path / "train.tsv").write_bytes("sentence\tlabel\nna\u00efve\t1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.tsv: not UTF-8 \(.*\); save it as UTF-8"):
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
        ("cola", "gj04\t2\t*\tThem left.", r"dev\.tsv, line 1: the label is '2'; it must be one of 0, 1"),
        ("stsb", "0\tn\tf\t1\t1\tn\tn\ta\tb\tmuch", r"the label is 'much'; it must be a number between 0 and 5"),
        ("stsb", "0\tn\tf\t1\t1\tn\tn\ta\tb\t5.2", r"the label is '5\.2'; it must be a number between 0 and 5"),
        ("stsb", "0\tn\tf\t1\t1\tn\tn\ta\tb\tnan", r"the label is 'nan'; it must be a number"),
    ],
)
def test_a_wrong_label_is_named_by_file_and_line(tmp_path, name, row, message):
    _, header, right, *_ = LAYOUTS[name]
    write(tmp_path, [row], header, "dev.tsv")
    write(tmp_path, [right], header, "train.tsv")
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


# --- the hub, as a folder on disk


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set in the hub's layout, one configuration a task, that ``datasets`` loads from a folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"

    def add(name: str, **parts: dict[str, list[object]]) -> None:
        for part, rows in parts.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_dict(rows).to_parquet(folder / name / f"{part}-00000-of-00001.parquet")
        lines = ["---", "configs:"]
        for config in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            lines += [f"- config_name: {config}", "  data_files:"]
            for path in sorted((folder / config).iterdir()):
                lines += [f"  - split: {path.name.partition('-')[0]}", f"    path: {config}/{path.name}"]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))

    monkeypatch.setattr("tnmpo.integrations.transformers.tasks.HUB_DATASET", str(folder))
    return add


def hub_rows(name: str, *labels: object) -> dict[str, list[object]]:
    texts = {column: [f"{column} {k}" for k in range(len(labels))] for column in get_task(name).columns}
    return {**texts, "label": [*labels], "idx": [*range(len(labels))]}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_folder_the_hub_is_asked(hub, name):
    labels = (4.5, 0.0, 5.0) if name == "stsb" else (1, 0, 1)
    hub("other", train={"text": ["a"]})
    parts = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
    hub(name, train=hub_rows(name, *labels), **{part: hub_rows(name, *labels[: 2 - k]) for k, part in enumerate(parts)})
    data = load_task(name, hold_out=1)
    assert isinstance(data, TaskData)
    assert sorted([*data.train.labels, *data.validation.labels]) == sorted(labels)
    assert data.dev.labels.tolist() == [*labels[:2]]
    assert data.dev.texts == tuple(tuple(f"{column} {k}" for column in data.task.columns) for k in range(2))
    assert len(data.dev_splits) == len(parts)
    assert [len(part) for part in data.dev_splits.values()] == [2, 1][: len(parts)]
    assert data.dev.labels.dtype == (np.float64 if name == "stsb" else np.int64)


def test_hidden_labels_on_the_hub_are_noticed(hub):
    hub("rte", train=hub_rows("rte", 0, 1), validation=hub_rows("rte", 1, -1))
    with pytest.raises(ValueError, match=r"rte, validation, example 1: the label is -1; it must be from 0 to 1"):
        load_task("rte")


def test_a_task_that_the_hub_has_not_says_to_pass_data_dir(hub):
    hub("rte", train=hub_rows("rte", 0), validation=hub_rows("rte", 1))
    with pytest.raises(ValueError, match=r"'sst2' could not be had from the Hugging Face hub .*; pass data_dir"):
        load_task("sst2")


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
