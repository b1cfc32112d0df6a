"""Networks side by side learn as each would alone, and a training that goes on ends where it would have."""

import io
import itertools
import math

import numpy as np
import pytest
import torch

from kullback import Logits, kl
from kullback.distill import Settings
from kullback.distill.models import Stack, network, predict
from kullback.distill.training import KINDS, HeldOut, Rows, StudentLesson, TeacherLesson, train

N, F, V = 90, 5, 3


def rows(seeds, labelled=9):
    g = torch.Generator().manual_seed(5)
    picked = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(s))[:labelled] for s in seeds])
    labels = torch.arange(N) % V
    return Rows(torch.randn(N, F, generator=g), Logits(torch.randn(N, V, generator=g)), picked, labels[picked])


def taught(kind, seeds, epochs=3, **more):
    settings = Settings(batch_size=8)
    lesson = StudentLesson(kind, rows(seeds), settings, kl)
    held_out = HeldOut(torch.randn(20, F, generator=torch.Generator().manual_seed(6)), torch.arange(20) % V)
    stack = Stack((F, 4, V), seeds)
    return train(stack, lesson, held_out, epochs=epochs, steps=5, learning_rate=0.01, **more)


def test_a_stack_is_its_members():
    stack, x = Stack((F, 4, V), (3, 7)), torch.randn(6, F)
    together = stack(x.expand(2, -1, -1))
    for i, seed in enumerate((3, 7)):
        alone = network((F, 4, V), seed)
        torch.testing.assert_close(together[i], alone(x), rtol=1e-5, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(stack.member(i).parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_the_same_beside_others(kind):
    together = taught(kind, (0, 1, 4))
    alone = taught(kind, (4,))
    for a, b in zip(together.model.member(2).parameters(), alone.model.member(0).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert together.curves[2].nll == pytest.approx(alone.curves[0].nll, rel=1e-4)
    weights = [together.model.member(i)[0].weight for i in range(3)]
    assert not torch.allclose(weights[0], weights[1], atol=1e-2)


def test_one_step_is_that_of_plain_pytorch():
    """Both: half of the rows with a label, the soft term on all of them: w T² KL + (1 - w) cross-entropy, AdamW."""
    given, settings = rows((0,)), Settings(batch_size=8, temperature=3.0, soft_weight=0.3)
    trained = train(
        Stack((F, 4, V), (0,)),
        StudentLesson("both", given, settings, kl),
        None,
        epochs=1,
        steps=1,
        learning_rate=0.01,
    )
    model = network((F, 4, V), 0)
    g = torch.Generator().manual_seed(0)
    picked, free = torch.randint(9, (1, 4), generator=g)[0], torch.randint(N, (1, 4), generator=g)[0]
    index = torch.cat([given.labelled[0, picked], free])
    said = model(given.train[index])
    log_q, p = torch.log_softmax(said / 3, -1), torch.softmax(given.teacher.data[index] / 3, -1)
    soft = (p * (p.log() - log_q)).sum(-1).mean()
    hard = torch.nn.functional.cross_entropy(said[:4], given.labels[0, picked])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-4)
    (0.3 * 9 * soft + 0.7 * hard).backward()
    optimizer.step()
    for a, b in zip(trained.model.member(0).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Shelf:
    """Keeps every state; gives back the one chosen."""

    def __init__(self, state=None):
        self.states, self.state = [], state

    def load(self):
        return self.state

    def save(self, state):
        file = io.BytesIO()
        torch.save(state(), file)
        file.seek(0)
        self.states.append(torch.load(file, weights_only=True))


def test_a_training_goes_on_to_the_same_weights_from_any_epoch():
    shelf = Shelf()
    whole = taught("both", (0, 1), epochs=4, kept=shelf)
    assert [state["epochs"] for state in shelf.states] == [1, 2, 3]
    for state in shelf.states:
        told = []
        again = taught("both", (0, 1), epochs=4, kept=Shelf(state), on_epoch=lambda: told.append(1))  # noqa: B023
        assert len(told) == 4
        for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert again.curves == whole.curves


def test_the_learning_rate_falls_along_a_cosine_to_zero():
    """With gradients of one sign and size AdamW moves by its learning rate: the moves are the schedule."""

    class Constant:
        def draw(self, generator, steps):
            return torch.zeros(steps, 1, dtype=torch.long)

        def loss(self, model, drawn):
            seen.append(model.biases[0].detach().clone())
            return model.biases[0].sum()

    seen: list[torch.Tensor] = []
    train(Stack((1, 1), (0,)), Constant(), None, epochs=2, steps=5, learning_rate=0.1)
    moves = [(a - b).item() for a, b in itertools.pairwise(seen)]
    expected = [0.1 * (1 + math.cos(math.pi * k / 10)) / 2 for k in range(9)]
    np.testing.assert_allclose(moves, expected, rtol=2e-3)


def test_a_prediction_in_parts_is_that_of_the_whole():
    model, x = network((F, 4, V), 0), torch.randn(40_000, F)
    torch.testing.assert_close(predict(model, x), model(x).detach(), rtol=1e-5, atol=1e-6)


def test_a_teacher_learns_its_labels():
    x = torch.randn(200, F, generator=torch.Generator().manual_seed(1))
    labels = x[:, :V].argmax(-1)
    trained = train(
        Stack((F, 16, V), (0,)), TeacherLesson(x, labels, 32), None, epochs=20, steps=10, learning_rate=0.02
    )
    assert (trained.model.member(0)(x).argmax(-1) == labels).double().mean() > 0.95
    assert trained.curves[0].accuracy == []
