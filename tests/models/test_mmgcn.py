"""MMGCN: propagation node by node in float64 with gradients, its loss, negatives, and users outside the graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.contract import TrainingInteractions
from models.errors import UserError
from models.mmgcn import MMGCN, ModalityGraph, Unseen
from models.options.mmgcn import MMGCNOptions
from models.systems import build, options_of
from tests.helpers.model_fixtures import (
    HISTORIES,
    ITEMS,
    MISSING,
    assert_same,
    item_table,
    make_batch,
    make_system,
    model_context,
    randomise,
)

HIDDEN, WIDTH, USERS = 4, 5, len(HISTORIES)
OPTIONS = MMGCNOptions(hidden=HIDDEN, visual_width=WIDTH)
#: 1 / number of neighbours is stored in float32
TOLERANCE = 1e-6
#: the graph of HISTORIES: the items of every user, and the users of every item
ITEMS_OF = [list(history) for history in HISTORIES]
USERS_OF = [[user for user, history in enumerate(HISTORIES) for i in history if i == item] for item in range(ITEMS)]


def mmgcn(options: MMGCNOptions = OPTIONS) -> MMGCN:
    model = MMGCN(options, model_context()).double().eval()
    randomise(model)
    return model


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.01 * x)


def unit(x: Tensor) -> Tensor:
    length = torch.sqrt((x * x).sum())
    return x / length if length > 0 else x


def mean(vectors: Sequence[Tensor], like: Tensor) -> Tensor:
    return sum(vectors) / len(vectors) if vectors else torch.zeros_like(like)  # type: ignore[return-value]


def content_of(model: MMGCN, modality: int, item: int) -> Tensor:
    """The state of one item before the first layer."""
    source = model.content[modality][0] if modality == 0 else model.content[modality]  # type: ignore[index]
    raw = item_table().gather(source.field, torch.tensor(item)).double()
    raw = source.missing if item == MISSING else raw
    return unit(model.content[0][1].weight @ raw + model.content[0][1].bias if modality == 0 else raw)  # type: ignore[index]


def convolve(graph: ModalityGraph, number: int, x: Tensor, neighbours: Sequence[Tensor], name: Tensor) -> Tensor:
    layer = graph.layers[number]
    read = leaky(layer.neighbours.weight @ mean(neighbours, x))
    own = leaky(layer.own.weight @ x + layer.own.bias) + name
    return leaky(layer.out.weight @ torch.cat([read, own]) + layer.out.bias)


def node_by_node(model: MMGCN, newcomer: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The final vectors of users and items, and of an unknown user with the history `newcomer`."""
    users, items, others = [], [], []
    for m, graph in enumerate(model.graphs):
        user = [unit(vector) for vector in graph.preference]
        item = [content_of(model, m, i) for i in range(ITEMS)]
        other = mean(user, user[0])
        for number in range(len(graph.layers)):
            if newcomer is not None:
                average = mean(list(model.user_embedding.weight), user[0])
                other = convolve(graph, number, other, [item[i] for i in newcomer], average)
            user, item = (
                [convolve(graph, number, user[u], [item[i] for i in ITEMS_OF[u]], model.user_embedding.weight[u])
                 for u in range(USERS)],
                [convolve(graph, number, item[i], [user[u] for u in USERS_OF[i]], model.item_embedding.weight[i])
                 for i in range(ITEMS)],
            )  # fmt: skip
        users.append(torch.stack(user))
        items.append(torch.stack(item))
        others.append(other)
    return sum(users) / 2, sum(items) / 2, None if newcomer is None else sum(others) / 2  # type: ignore[return-value]


def test_propagation_node_by_node() -> None:
    model, batch = mmgcn(), make_batch(HISTORIES)
    user, item, _ = node_by_node(model)
    leaves = list(model.parameters())
    assert_same(model.item_vectors()[1:], item[1:], leaves, TOLERANCE)
    assert_same(model.user_vectors(batch), user, leaves, TOLERANCE)


def test_loss_row_by_row() -> None:
    model, batch = mmgcn(), make_batch(HISTORIES)
    negative = model.unseen(batch.user, batch.key).tolist()
    user, item, _ = node_by_node(model)
    ranking, names = [], []
    for u, target, other in zip(range(USERS), batch.target.tolist(), negative, strict=True):
        ranking.append(torch.log(1 + torch.exp(user[u] @ item[other] - user[u] @ item[target])))
        if len(HISTORIES[u]) == 1:
            first, another = HISTORIES[u][0], model.unseen(batch.user, batch.key, 1).tolist()[u]
            ranking.append(torch.log(1 + torch.exp(user[u] @ item[another] - user[u] @ item[first])))
        names += [
            model.user_embedding.weight[u],
            model.item_embedding.weight[target],
            model.item_embedding.weight[other],
        ]
    squares = torch.stack([x * x for x in names]).sum() / (len(names) * HIDDEN)
    preference = model.graphs[0].preference
    expected = squares + (preference * preference).sum() / (USERS * WIDTH)
    losses, leaves = model.train()(batch), list(model.parameters())
    rows, begun = sum(len(h) - 1 for h in HISTORIES), sum(len(h) > 1 for h in HISTORIES)
    share = rows / (rows + begun)  # these rows are not all of the dataset's, so theirs is the dataset's share
    assert_same(losses["ranking"], sum(ranking) / USERS * share, leaves, TOLERANCE)  # type: ignore[arg-type]
    assert_same(losses["regularisation"], expected, leaves)
    assert model.loss_weights == {"ranking": 1.0, "regularisation": 0.1}


def test_a_row_that_begins_a_history_has_two_edges() -> None:
    """The users' first items are positives once, each with a negative of its own; the loss is a mean over edges."""
    # user 0 has items 1, 2, 3, user 1 has 4, 5, user 2 has 6 alone and no row
    edges = TrainingInteractions(torch.tensor([0, 3, 5, 6]), torch.tensor([1, 2, 3, 4, 5, 6]))
    model = MMGCN(OPTIONS, replace(model_context(), interactions=edges)).double()
    randomise(model)
    batch = make_batch([[1], [1, 2], [4]])
    batch = replace(batch, user=torch.tensor([0, 0, 1]), target=torch.tensor([2, 3, 5]))
    negatives = [model.unseen(batch.user, batch.key, draws).tolist() for draws in (0, 1)]
    assert negatives[0] != negatives[1]
    user, item = model.user_vectors(batch), model.item_vectors()
    pairs = [(0, 2, negatives[0][0]), (0, 1, negatives[1][0]), (1, 3, negatives[0][1]),
             (2, 5, negatives[0][2]), (2, 4, negatives[1][2])]  # fmt: skip
    losses = [torch.log(1 + torch.exp(user[row] @ (item[other] - item[positive]))) for row, positive, other in pairs]
    actual = model.train()(batch)["ranking"]
    assert_same(actual, torch.stack(losses).sum() / len(pairs), list(model.parameters()), TOLERANCE)


def test_nodes_as_released_stay_what_they_were() -> None:
    """The loss is that of trained nodes; no gradient of it reaches preferences and ids."""
    batch = make_batch(HISTORIES)
    trained, fixed = mmgcn().train(), mmgcn(replace(OPTIONS, train_nodes=False)).train()
    losses = [model(batch)["ranking"] for model in (trained, fixed)]
    assert torch.equal(*losses)
    losses[1].backward()
    without = {name for name, p in fixed.named_parameters() if p.grad is None}
    assert without == {"user_embedding.weight", "item_embedding.weight", "graphs.0.preference", "graphs.1.preference"}


def test_everything_learned_is_a_parameter_with_a_gradient() -> None:
    """The released code trains neither the preferences nor the id embeddings."""
    model, batch = mmgcn(), make_batch(HISTORIES)
    model.train()(batch)["ranking"].backward()
    gradient = {name: bool(p.grad is not None and p.grad.any()) for name, p in model.named_parameters()}
    assert all(gradient.values()), gradient
    assert {"user_embedding.weight", "graphs.0.preference", "content.1.missing", "content.0.0.missing"} <= set(gradient)
    assert set(model.state_dict()) == set(gradient), "no buffers in checkpoints"


@pytest.mark.parametrize("history", [[3], [7, 7], [MISSING, 1, 2]])
def test_somebody_unknown_is_the_history_and_otherwise_average(history: list[int]) -> None:
    model, batch = mmgcn(), make_batch([history, [1, 2]])
    batch = replace(batch, user=torch.tensor([-1, 1]))
    user, _, newcomer = node_by_node(model, history)
    assert newcomer is not None
    assert_same(model.user_vectors(batch)[:1], newcomer[None], list(model.parameters()), TOLERANCE)
    assert_same(model.user_vectors(batch)[1:], user[1:2], tolerance=TOLERANCE)


def test_an_unknown_user_with_the_history_of_an_average_one_is_that_user() -> None:
    model, batch = mmgcn(), make_batch(HISTORIES)
    with torch.no_grad():
        for average in (model.user_embedding.weight, *(graph.preference for graph in model.graphs)):
            average.copy_(average[:1].expand_as(average))
    unknown = replace(batch, user=torch.full_like(batch.user, -1))
    assert_same(model.user_vectors(unknown), model.user_vectors(batch), tolerance=TOLERANCE)


def test_vectors_do_not_depend_on_the_batch_nor_on_padding() -> None:
    model, user = mmgcn(), torch.tensor([-1, 1, -1, 2, 0, -1])
    batch = replace(make_batch(HISTORIES), user=user)
    together = model.user_vectors(batch)
    for row, history in enumerate(HISTORIES):
        alone = replace(make_batch([history], length=len(history)), user=user[row : row + 1])
        torch.testing.assert_close(model.user_vectors(alone)[0], together[row], rtol=1e-12, atol=1e-12)


def test_the_graph_is_propagated_once_per_evaluation() -> None:
    model, batch = mmgcn(), make_batch(HISTORIES)
    calls: Counter[str] = Counter()
    model.neighbours.register_forward_hook(lambda *_: calls.update(["graph"]))  # type: ignore[union-attr]
    with torch.no_grad():
        item = model.item_vectors()
        user = model.user_vectors(replace(batch, user=batch.user - 1))
        assert model.user_vectors(batch).shape == user.shape
    assert calls["graph"] == len(model.graphs) * OPTIONS.layers
    assert torch.equal(item, model.item_vectors()), "with gradients it is made anew, and is the same"


def test_without_its_graph_nobody_is_read_but_oneself() -> None:
    options, batch = replace(OPTIONS, graph=False), make_batch(HISTORIES)
    one = mmgcn(options)
    other_graph = TrainingInteractions(torch.tensor([0, 5, *[5] * (USERS - 1)]), torch.tensor([1, 2, 3, 4, 5]))
    two = MMGCN(options, replace(model_context(), interactions=other_graph)).double().eval()
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.item_vectors(), two.item_vectors())
    assert torch.equal(one.user_vectors(batch), two.user_vectors(batch))
    assert not torch.equal(mmgcn().item_vectors(), one.item_vectors())
    unknown = one.user_vectors(replace(batch, user=torch.full_like(batch.user, -1)))
    assert_same(unknown, unknown[:1].expand_as(unknown))  # without a graph the history has no effect


def test_without_content_nothing_of_the_table_is_read() -> None:
    bare = replace(model_context(), table=item_table(fields=[]))
    model = MMGCN(replace(OPTIONS, content=False), bare)
    assert all(torch.isfinite(loss) for loss in model(make_batch(HISTORIES)).values())
    assert options_of("mmgcn", {"content": False}).needs == ()
    assert options_of("mmgcn", {}).needs == ("visual", "text")
    with pytest.raises(UserError, match="mmgcn needs item content that this dataset lacks"):
        build("mmgcn", OPTIONS, bare)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hidden": 0}, "hidden is 0"), ({"layers": 0}, "layers is 0"), ({"visual_width": 0}, "visual_width is 0"),
     ({"lambda_regularisation": -1.0}, "lambda_regularisation is -1.0: it must be 0 or more")],
)  # fmt: skip
def test_options_out_of_bounds_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_system("mmgcn", options, model_context())


def test_negatives_are_uniform_over_what_the_user_has_not_seen() -> None:
    unseen, draws = Unseen(model_context().interactions, ITEMS, seed=7), 30_000
    for user, history in enumerate(HISTORIES):
        key = torch.arange(draws) * USERS + user
        found = torch.bincount(unseen(torch.full((draws,), user), key), minlength=ITEMS)
        free = [item for item in range(1, ITEMS) if item not in history]
        assert not found[[item for item in range(ITEMS) if item not in free]].any()
        expected = draws / len(free)
        assert ((found[free] - expected).abs() < 5 * math.sqrt(expected)).all()


def test_negatives_depend_on_user_and_key_alone() -> None:
    unseen, batch = Unseen(model_context().interactions, ITEMS, seed=7), make_batch(HISTORIES)
    together = unseen(batch.user, batch.key)
    backwards = unseen(batch.user.flip(0), batch.key.flip(0)).flip(0)
    assert torch.equal(together, backwards)
    assert torch.equal(together[2:3], unseen(batch.user[2:3], batch.key[2:3]))
    many = torch.arange(1000)
    first, second = (unseen(torch.zeros_like(many), many + (epoch << 32)) for epoch in (1, 2))
    assert (first == second).float().mean() < 0.2, "another epoch draws other items"
    other_seed = Unseen(model_context().interactions, ITEMS, seed=8)(torch.zeros_like(many), many)
    assert (other_seed == unseen(torch.zeros_like(many), many)).float().mean() < 0.2


def test_somebody_who_has_seen_everything_gets_some_item() -> None:
    everything = TrainingInteractions(torch.tensor([0, ITEMS - 1]), torch.arange(1, ITEMS))
    item = Unseen(everything, ITEMS, seed=7)(torch.zeros(50, dtype=torch.int64), torch.arange(50))
    assert ((item >= 1) & (item < ITEMS)).all()


def test_what_is_kept_of_pairs_grows_with_interactions_alone() -> None:
    users = items = 1_000_000
    one_each = TrainingInteractions(torch.arange(users + 1), torch.arange(users) % (items - 1) + 1)
    assert Unseen(one_each, items, seed=7).seen.numel() == users


def test_half_precision_stays_close() -> None:
    model, batch = MMGCN(OPTIONS, model_context()), make_batch(HISTORIES)
    randomise(model)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch)
        users, items = model.user_vectors(batch), model.item_vectors()
    assert users.dtype == items.dtype == torch.float32
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.03, atol=0.01)
