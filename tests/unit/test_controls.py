import random

import numpy as np
import pytest

from sllm_tune.evaluate.controls import majority, tfidf


def clauses(subjects, rows, seed):
    rng = random.Random(seed)
    common = ["we", "may", "use", "share", "keep", "your", "data", "when", "you", "visit", "our", "site"]
    drawn = [rng.choice(sorted(subjects)) for _ in range(rows)]
    return [" ".join(rng.sample([*rng.choices(common, k=8), subjects[name]], 9)) for name in drawn], drawn


def accuracy(predicted, truth):
    return np.mean(np.array(predicted) == np.array(truth))


def test_majority_repeats_the_most_frequent_training_answer():
    assert majority(["No", "Yes", "Yes"], ["No", "No"]) == ["Yes", "Yes"]


def test_majority_takes_the_first_in_sorted_order_of_equals():
    assert majority(["c", "b", "a", "c", "b"], ["x"]) == ["b"]


def test_majority_without_training_answers_is_refused():
    with pytest.raises(ValueError, match="no training answer"):
        majority([], ["x"])


def test_tfidf_learns_words_that_tell_the_answer():
    subjects = {"contacts": "phonebook", "location": "gps", "payment": "card"}
    texts, targets = clauses(subjects, 200, seed=0)
    test_texts, truth = clauses(subjects, 60, seed=1)
    assert accuracy(tfidf(texts, targets, test_texts, seed=0), truth) == 1.0


def test_tfidf_learns_korean_stems_under_endings_not_seen_in_training():
    seen, unseen = ["은", "이", "을", "에"], ["으로", "까지", "만", "부터"]
    stems = (("계약", "민사"), ("범죄", "형사"))
    rows = [(stem + ending + " 확인합니다", label) for stem, label in stems for ending in seen]
    texts, targets = zip(*rows * 10, strict=True)
    test = [stem + ending + " 확인합니다" for stem, _ in stems for ending in unseen]
    assert tfidf(texts, targets, test, seed=0) == ["민사"] * 4 + ["형사"] * 4


def test_tfidf_reads_words_of_one_character():
    texts, targets = ["answer A", "answer B"] * 20, ["first", "second"] * 20
    assert tfidf(texts, targets, ["answer B", "answer A"], seed=0) == ["second", "first"]


def test_tfidf_chooses_its_regularisation_on_validation_rows():
    # One row in ten has "late" and another answer: strong regularisation never gives it, weak regularisation does.
    texts = ["common early"] * 90 + ["common early late"] * 10
    targets = ["a"] * 90 + ["b"] * 10

    def answer(validation_text, validation_target):
        validation = {"validation_texts": [validation_text], "validation_targets": [validation_target]}
        return tfidf(texts, targets, ["common early late"], seed=0, **validation)

    assert answer("common early late", "b") == ["b"]
    # Every strength gets this row right, so the strongest is taken.
    assert answer("common early", "a") == ["a"]


def test_tfidf_with_one_training_answer_gives_it():
    assert tfidf(["x y", "z"], ["Yes", "Yes"], ["x", "q", "z"], seed=0) == ["Yes", "Yes", "Yes"]


def test_tfidf_is_deterministic():
    subjects = {str(k): f"word{k % 5}" for k in range(8)}
    texts, targets = clauses(subjects, 150, seed=2)
    test_texts, _ = clauses(subjects, 80, seed=3)
    assert tfidf(texts, targets, test_texts, seed=4) == tfidf(texts, targets, test_texts, seed=4)


def test_tfidf_answers_only_with_training_answers_as_plain_strings():
    predicted = tfidf(["a b", "c d", "e f"], ["x", "y", "z"], ["a b", "", "unknown"], seed=0)
    assert predicted[0] == "x"
    assert set(predicted) <= {"x", "y", "z"}
    assert all(type(answer) is str for answer in predicted)


def test_tfidf_refuses_rows_that_do_not_pair():
    with pytest.raises(ValueError, match="training: 2 texts, 1 targets"):
        tfidf(["a", "b"], ["x"], ["c"], seed=0)
    with pytest.raises(ValueError, match="validation: 1 texts, 0 targets"):
        tfidf(["a"], ["x"], ["c"], seed=0, validation_texts=["d"])
    with pytest.raises(ValueError, match="no training row"):
        tfidf([], [], ["c"], seed=0)
