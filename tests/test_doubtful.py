"""What a few samples cannot teach about a batch: orders that depend on the samples, layers that no gradient reached."""

from __future__ import annotations

import warnings

import pytest
import torch
from oracles import per_sample_gradients as by_loop
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sgdkern.capture import per_sample_gradients
from sgdkern.gram_pass import gram_matrix
from sgdkern.watching import watch


def sines(outputs: Tensor, _: object = None) -> Tensor:
    return outputs.sin().flatten(1).sum(1)


class Sorted(nn.Module):
    """Sorts its samples, as packed sequences once had to be, and puts them back at the end."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.cell, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort(descending=True)
        if self.way == "index":
            x = x[order]
        elif self.way == "list":
            x = x[order.tolist()]
        elif self.way == "select":
            x = x.index_select(0, order)
        elif self.way == "gather":
            x = x.gather(0, order[:, None].expand_as(x))
        elif self.way == "stack":
            x = torch.stack([x[place] for place in order.tolist()])
        elif self.way == "into":
            x = torch.zeros_like(x).index_copy(0, order.argsort(), x)
        out = self.head(self.cell(x).tanh())
        return out[order.argsort()]


@pytest.mark.parametrize("way", ["index", "list", "select", "gather", "stack", "into"])
@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_samples_that_are_sorted_within_although_the_studied_ones_were_in_order(way: str, function: object) -> None:
    """The first, middle and last sample are in order by chance, the others are not."""
    torch.manual_seed(0)
    model, x = Sorted(way).double(), torch.randn(9, 4, dtype=torch.float64)
    x[0, 0], x[4, 0], x[8, 0] = 3, 0, -3
    expected = by_loop(model, (x,), sines, 9)
    found = function(model, sines, x, torch.zeros(9))
    torch.testing.assert_close(found.gram(), expected @ expected.T)


def test_a_known_plan_is_checked_against_each_batch_that_is_sorted_within() -> None:
    torch.manual_seed(0)
    model = Sorted("index")
    for _ in range(4):
        x = torch.randn(6, 4)
        if not _:
            x = x[x[:, 0].argsort(descending=True)]  # all in order: the plan says so
        G = per_sample_gradients(model, sines, x, torch.zeros(6))
        torch.testing.assert_close(G.dense(), by_loop(model, (x,), sines, 6))
        with watch(model, sines, every=1) as watched:
            watched.loss_fn(model(x), None).backward()
        torch.testing.assert_close(watched.gradients.dense(), by_loop(model, (x,), sines, 6))


@pytest.mark.parametrize("num_samples", [5, 9])
def test_any_two_samples_that_change_places_are_seen(num_samples: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_samples, 4, dtype=torch.float64)
    for one in range(num_samples):
        for other in range(one):
            model = Sorted("index").double()
            x[:, 0] = torch.arange(num_samples).flip(0)
            per_sample_gradients(model, sines, x, torch.zeros(num_samples))  # in order: the plan says so
            x[[one, other], 0] = x[[other, one], 0]
            G = per_sample_gradients(model, sines, x, torch.zeros(num_samples))
            torch.testing.assert_close(G.dense(), by_loop(model, (x,), sines, num_samples))


def test_a_known_plan_says_nothing_about_hooks_that_came_later() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)
    per_sample_gradients(model, sines, x, torch.zeros(6))
    hook = model[2].register_full_backward_hook(lambda _, grads, __: tuple(grad / grad.norm() for grad in grads))
    with pytest.raises(ValueError, match="backward hooks must change a gradient by a fixed factor"):
        per_sample_gradients(model, sines, x, torch.zeros(6))
    hook.remove()
    G = per_sample_gradients(model, sines, x, torch.zeros(6))
    torch.testing.assert_close(G.dense(), by_loop(model, (x,), sines, 6))


def test_what_a_watch_knows_says_nothing_about_modules_in_another_mode() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval(), torch.randn(6, 4)
    with watch(model, sines, every=1) as watched:
        watched.loss_fn(model(x), None).backward()
        model.train()
        with pytest.raises(ValueError, match=r"samples must not be coupled.*\['1'\]"):
            watched.loss_fn(model(x), None).backward()


def test_a_watch_that_cannot_count_its_samples_lets_the_forward_pass_be() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            first, second = map(self.layer, pair)
            return torch.cat([first, second]) @ (second.T @ first)

    model, x = Pair(), torch.randn(6, 4)
    with watch(model, sines, every=1) as watched, pytest.raises(ValueError, match="one number a sample"):
        watched.loss_fn(model((x, x)), None).backward()


class Turned(nn.Module):
    """The layer sees its samples in another order where there are more than three of them, or the first ones alone."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.layer, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, 0] > 0
        if self.way in ("einsum", "product"):  # of the dispatch: slot after slot for the samples that are chosen
            slots = nn.functional.one_hot((chosen.cumsum(0) - 1).clamp_min(0), len(x)) * chosen[:, None]
            slots = slots.to(x.dtype)
            rows = torch.einsum("nc,nd->cd", slots, x) if self.way == "einsum" else slots.T @ x
            return self.other(x) + slots @ self.layer(rows).tanh()
        by = int(chosen.sum()) % len(x) if len(x) > 3 else 0
        if self.way == "roll":
            return self.layer(x.roll(by, 0)).roll(-by, dims=0)
        if self.way == "flip":
            return self.layer(x.flip(0)).flip([0]) if len(x) > 3 else self.layer(x)
        return torch.cat([(out := self.layer(torch.cat([x[by:], x[:by]])))[len(x) - by :], out[: len(x) - by]])


@pytest.mark.parametrize("way", ["einsum", "product", "roll", "flip", "cat"])
@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_samples_that_are_turned_or_dispatched_although_the_studied_ones_were_in_order(
    way: str, function: object
) -> None:
    torch.manual_seed(0)
    model, x = Turned(way).double(), torch.randn(9, 4, dtype=torch.float64)
    x[:, 0] = torch.tensor([1, 1, -1, 1, 1, -1, -1, 1, 1])
    expected = by_loop(model, (x,), sines, 9)
    torch.testing.assert_close(function(model, sines, x, torch.zeros(9)).gram(), expected @ expected.T)


class OneByOne(nn.Module):
    """Calls its layer with one sample at a time, without a sample axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.layer(row) for row in x])


@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_samples_that_pass_one_by_one_take_the_explicit_route(function: object) -> None:
    torch.manual_seed(0)
    model, x = OneByOne().double(), torch.randn(9, 4, dtype=torch.float64)
    expected = by_loop(model, (x,), sines, 9)
    with pytest.warns(UserWarning, match="explicit per-sample gradients for 2 parameters"):
        found = function(model, sines, x, torch.zeros(9))
    torch.testing.assert_close(found.gram(), expected @ expected.T)


class Packed(nn.Module):
    """Sequences of several lengths, padded again before a layer that sees them sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths, order = lengths.sort(descending=True)
        packed = pack_padded_sequence(x[order].transpose(0, 1), lengths)
        padded, _ = pad_packed_sequence(self.rnn(packed)[0], total_length=x.shape[1])
        return self.head(padded).transpose(0, 1)[order.argsort()]


@pytest.mark.parametrize("lengths", [[5, 2, 4, 3, 4, 1, 3], [5, 5, 5, 5, 5, 5, 5], [5, 2, 4, 5, 4, 1, 5]])
def test_packed_sequences_sorted_by_hand(lengths: list[int]) -> None:
    torch.manual_seed(0)
    model, inputs = Packed().double(), (torch.randn(7, 5, 3, dtype=torch.float64), torch.tensor(lengths))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gram_matrix(model, sines, inputs, torch.zeros(7))
    expected = by_loop(model, inputs, sines, 7)
    torch.testing.assert_close(found.gram(), expected @ expected.T)


class Gated(nn.Module):
    """A layer before a gate that is shut for most samples, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.head(x + self.inner(x) * (x[:1, :, :1] > 9)).transpose(0, 1)


@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_a_layer_that_no_studied_sample_reaches_sequence_first(function: object) -> None:
    torch.manual_seed(0)
    model, x = Gated().double(), torch.randn(8, 3, 4, dtype=torch.float64)
    x[[1, 5], 0, 0] = 10  # not among the three that are studied
    expected = by_loop(model, (x,), sines, 8)
    torch.testing.assert_close(function(model, sines, x, torch.zeros(8)).gram(), expected @ expected.T)


def deep(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [layer for _ in range(80) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight /= 4  # each layer divides the gradient by about seven
    return model.to(dtype), torch.randn(12, 8).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_gradients_that_vanish_on_their_way_through_many_layers(function: object, dtype: torch.dtype) -> None:
    """In the first layers they are no numbers of the dtype any more: nothing is said of samples being mixed."""
    model, x = deep(dtype)
    found = function(model, nn.CrossEntropyLoss(), x, torch.arange(12) % 3).gram()
    late = per_sample_gradients(model[100:], nn.CrossEntropyLoss(), model[:100](x).detach(), torch.arange(12) % 3)
    torch.testing.assert_close(found, late.gram(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_gradients_that_underflow_in_float16_are_refused_as_such(function: object) -> None:
    model, x = deep(torch.float16)
    with pytest.raises(ValueError, match=r"underflow in float16\. Multiply the loss by a power of two"):
        function(model, nn.CrossEntropyLoss(), x, torch.arange(12) % 3)


@pytest.mark.parametrize("function", [per_sample_gradients, gram_matrix])
def test_gradients_without_room_for_weights_in_float16_are_refused_as_such(function: object) -> None:
    """They are finite; what tells samples apart makes them larger than float16 can hold."""
    torch.manual_seed(0)
    model, x = Sorted("index").half(), torch.randn(9, 4).half()
    x[0, 0], x[4, 0], x[8, 0] = 3, 0, -3
    with pytest.raises(ValueError, match=r"overflow in torch\.float16\. Divide the loss by a power of two"):
        function(model, lambda outputs, _: sines(outputs.float()) * 2000, x, torch.zeros(9))


class Wide(nn.Module):
    """Double precision where it is needed, single elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.scale = nn.Linear(4, 5), nn.Linear(5, 3).double(), nn.Parameter(torch.rand(4) + 1)
        self.normal = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.narrow((self.normal(x).double() * self.scale).float()).tanh().double())


@pytest.mark.parametrize("back", [False, True])
def test_layers_of_several_precisions(back: bool) -> None:
    """Products are in the widest; no gradient is less precise than autograd's own."""
    torch.manual_seed(0)
    model, x = Wide(), torch.randn(6, 4)
    if back:
        model = nn.Sequential(model, nn.Flatten(), nn.Identity())
    truth = by_loop(model, (x,), sines, 6)
    G = per_sample_gradients(model, sines, x, torch.zeros(6))
    K = gram_matrix(model, sines, x, torch.zeros(6))
    assert G.dtype == G.gram().dtype == K.dtype == G.matvec(torch.ones(G.num_params)).dtype == torch.float64
    torch.testing.assert_close(G.dense(), truth.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(K.gram(), G.gram(), rtol=1e-12, atol=1e-12)
    v, w = torch.randn(G.num_params), torch.randn(6)
    torch.testing.assert_close(G.matvec(v), G.dense() @ v.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(G.rmatvec(w), G.dense().T @ w.double(), rtol=1e-6, atol=1e-6)
    chunked = per_sample_gradients(model, sines, x, torch.zeros(6), chunk_size=4)
    torch.testing.assert_close(chunked.gram(), G.gram(), rtol=1e-6, atol=1e-6)


class Spiked(nn.Module):
    """Has no finite gradient where an input is zero; what other samples receive is not touched."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).abs().sqrt())


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (per_sample_gradients, {}),
        (per_sample_gradients, {"chunk_size": 5}),
        (per_sample_gradients, {"chunk_size": 1}),
        (per_sample_gradients, {"memory_budget": 5000}),
        (gram_matrix, {}),
        (gram_matrix, {"memory_budget": 16_000}),
    ],
)
def test_samples_without_finite_gradients_are_named_by_their_numbers(function: object, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, x = Spiked(), torch.randn(40, 4)
    x[[23, 31]] = 0
    first = r"\[23\]" if options else r"\[23, 31\]"
    with pytest.raises(
        RuntimeError, match=rf"gradients must be finite, but those at \['inner.weight'\].*first: {first}"
    ):
        function(model, nn.CrossEntropyLoss(), x, torch.arange(40) % 3, **options)
    with pytest.raises(RuntimeError, match=r"losses must be finite.*first: \[23"):
        function(model, lambda out, t: out.sum(1) / (t != 23), x, torch.arange(40), **options)


def test_a_batch_whose_every_gradient_is_bad_names_the_first() -> None:
    model, x = Spiked(), torch.zeros(300, 4)
    with pytest.raises(RuntimeError, match=r"first: \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]\)"):
        gram_matrix(model, nn.CrossEntropyLoss(), x, torch.arange(300) % 3)
