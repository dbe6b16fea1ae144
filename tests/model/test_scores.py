"Scores that stay on the device, equal to scikit-learn's."
import numpy as np
import pytest
import torch

from basegun_fastai.model.learner import accuracy_of, confusion_counts, precision_of, recall_of


def test_scores_are_those_of_scikit_learn_whatever_is_missing():
    from sklearn.metrics import accuracy_score, precision_score, recall_score
    for seed in range(30):
        random = np.random.default_rng(seed)
        labels, logits = torch.from_numpy(random.integers(0, 1 + seed % 5,
                                                          20)), torch.from_numpy(random.normal(size=(20, 5)))
        if seed % 2: logits[:, 3:] -= 99  # never predicted
        text, counts = logits.argmax(1), confusion_counts(labels, logits)
        assert accuracy_of(counts) == pytest.approx(accuracy_score(labels, text))
        assert precision_of(counts) == pytest.approx(precision_score(labels, text, average='macro', zero_division=0))
        assert recall_of(counts) == pytest.approx(recall_score(labels, text, average='macro', zero_division=0))
