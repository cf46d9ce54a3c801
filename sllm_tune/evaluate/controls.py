"""Controls that cost nothing: what a specialist has to beat to be worth training.

They see the same training rows and the same prompt text as the specialist, and answer the same test items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import FeatureUnion

REGULARISATION = (0.1, 1.0, 10.0, 100.0)
WITHOUT_VALIDATION = 1.0


def majority(train_targets: Sequence[str], test_items: Sequence[object]) -> list[str]:
    """The most frequent training answer, once for each test item; of equally frequent ones the first in sorted order.

    Raises:
        ValueError: no training answer.
    """
    counts = Counter(train_targets)
    if not counts:
        raise ValueError("no training answer to take the most frequent of")
    answer = max(sorted(counts), key=lambda target: counts[target])
    return [answer] * len(test_items)


def tfidf(
    train_texts: Sequence[str],
    train_targets: Sequence[str],
    test_texts: Sequence[str],
    *,
    seed: int,
    validation_texts: Sequence[str] = (),
    validation_targets: Sequence[str] = (),
) -> list[str]:
    """Predict each test text's answer by logistic regression on TF-IDF of words and characters.

    One classifier an answer; the inverse regularisation C is the one of `REGULARISATION` with the best validation
    accuracy (the strongest regularisation among equals), or 1 when there is no validation row.

    Raises:
        ValueError: texts and targets differ in number, or there is no training row.

    Source: Wang & Manning 2012, "Baselines and bigrams" (ACL P12-2018), for how strong such a baseline is; dual
    coordinate descent of Yu, Huang & Lin 2011 (Machine Learning 85).
    """
    for part, texts, targets in (
        ("training", train_texts, train_targets),
        ("validation", validation_texts, validation_targets),
    ):
        if len(texts) != len(targets):
            raise ValueError(f"{part}: {len(texts)} texts, {len(targets)} targets")
    if not train_texts:
        raise ValueError("no training row")
    if len(set(train_targets)) == 1:
        return [train_targets[0]] * len(test_texts)

    features = _features(rare=1 if len(train_texts) < 100 else 2)
    train, answers = features.fit_transform(train_texts), np.asarray(train_targets)
    if validation_texts:
        held_out, truth = features.transform(validation_texts), np.asarray(validation_targets)
        fitted = [_classifier(c, seed).fit(train, answers) for c in REGULARISATION]
        best = max(fitted, key=lambda classifier: np.mean(classifier.predict(held_out) == truth))
    else:
        best = _classifier(WITHOUT_VALIDATION, seed).fit(train, answers)
    return [str(answer) for answer in best.predict(features.transform(test_texts))]


def _features(rare: int) -> FeatureUnion:
    """Words and pairs of words beside character 2- to 5-grams, which carry Korean, where endings join the word."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # The default token pattern leaves out words of one character, which Korean and lettered options have.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, min_df=rare)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=rare)
    return FeatureUnion([("words", words), ("characters", characters)])


def _classifier(c: float, seed: int) -> OneVsRestClassifier:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    # The dual solver with liblinear's own tolerance: for 20 answers many times faster than lbfgs or the primal.
    return OneVsRestClassifier(
        LogisticRegression(C=c, solver="liblinear", dual=True, tol=0.1, max_iter=1000, random_state=seed)
    )
