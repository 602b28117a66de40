"""Recurrent layers as the linear layers that they are made of, written out in functions that have rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import _VF, Tensor

from sgdkern.layers import decomposition

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]


def _lstm_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    (r, z, n), (hr, hz, hn) = from_input.chunk(3, -1), from_state.chunk(3, -1)
    reset, update = (r + hr).sigmoid(), (z + hz).sigmoid()
    new = (n + reset * hn).tanh()
    return (new + update * (state[0] - new),)


def _tanh_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    return ((from_input + from_state).tanh(),)


def _relu_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    return ((from_input + from_state).relu(),)


CELLS: dict[Any, Cell] = {_VF.lstm: _lstm_cell, _VF.gru: _gru_cell, _VF.rnn_tanh: _tanh_cell, _VF.rnn_relu: _relu_cell}


def _direction(cell: Cell, inputs: Tensor, state: State, weights: Sequence[Any], reverse: bool) -> tuple[Tensor, State]:
    """One layer in one direction over [T, N, I]: the hidden states [T, N, H] and the last state."""
    w_input, w_state, b_input, b_state, w_projection = weights
    projected = F.linear(inputs, w_input, b_input)
    hidden = []
    for step in projected.unbind(0)[::-1] if reverse else projected.unbind(0):
        state = cell(step, F.linear(state[0], w_state, b_state), state)
        if w_projection is not None:
            state = (F.linear(state[0], w_projection), *state[1:])
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), state


def _recurrent(
    cell: Cell,
    inputs: Tensor,
    states: State,
    flat: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """All layers of `torch._VF.lstm`, ``gru`` or ``rnn``."""
    directions = 2 if bidirectional else 1
    count = len(flat) // (num_layers * directions)
    outputs = inputs.transpose(0, 1) if batch_first else inputs
    last: list[State] = []
    for depth in range(num_layers):
        if depth and dropout and train:
            outputs = F.dropout(outputs, dropout)
        sides = []
        for side in range(directions):
            place = depth * directions + side
            given = list(flat[place * count : (place + 1) * count])
            biases: Sequence[Any] = given[2:4] if has_biases else [None, None]
            projection = given[-1] if count in (3, 5) else None
            state = tuple(part[place] for part in states)
            hidden, state = _direction(cell, outputs, state, [*given[:2], *biases, projection], side == 1)
            sides.append(hidden)
            last.append(state)
        outputs = torch.cat(sides, -1) if bidirectional else sides[0]
    outputs = outputs.transpose(0, 1) if batch_first else outputs
    return (outputs, *(torch.stack([state[part] for state in last]) for part in range(len(states))))


def _packed(
    cell: Cell,
    rows: Tensor,
    batch_sizes: Tensor,
    states: State,
    flat: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """The same over a packed sequence, rows [ΣT_n, I] sorted by step and then by decreasing length."""
    directions = 2 if bidirectional else 1
    count = len(flat) // (num_layers * directions)
    sizes = batch_sizes.tolist()
    last: list[State] = []
    for depth in range(num_layers):
        if depth and dropout and train:
            rows = F.dropout(rows, dropout)
        sides = []
        for side in range(directions):
            place = depth * directions + side
            given: Sequence[Any] = flat[place * count : (place + 1) * count]
            biases: Sequence[Any] = given[2:4] if has_biases else (None, None)
            projection = given[-1] if count in (3, 5) else None
            state = tuple(part[place] for part in states)
            hidden, state = _packed_direction(cell, rows, sizes, state, [*given[:2], *biases, projection], side == 1)
            sides.append(hidden)
            last.append(state)
        rows = torch.cat(sides, -1) if bidirectional else sides[0]
    return (rows, *(torch.stack([state[part] for state in last]) for part in range(len(states))))


def _packed_direction(
    cell: Cell, rows: Tensor, sizes: list[int], state: State, weights: Sequence[Any], reverse: bool
) -> tuple[Tensor, State]:
    """One layer in one direction: at each step the sequences that are still running move on."""
    w_input, w_state, b_input, b_state, w_projection = weights
    steps = list(F.linear(rows, w_input, b_input).split(sizes))
    hidden = []
    for step in reversed(steps) if reverse else steps:
        running = len(step)
        now = tuple(part[:running] for part in state)
        now = cell(step, F.linear(now[0], w_state, b_state), now)
        if w_projection is not None:
            now = (F.linear(now[0], w_projection), *now[1:])
        state = tuple(torch.cat([part, rest[running:]]) for part, rest in zip(now, state, strict=True))
        hidden.append(now[0])
    return torch.cat(hidden[::-1] if reverse else hidden), state


def _written_out(function: Any) -> Callable[..., tuple[Tensor, ...]]:
    """The fused function's equal."""

    def body(inputs: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if isinstance(args[0], Tensor) and args[0].dtype == torch.int64:  # (rows, batch_sizes, hx, …)
            states = tuple(args[1]) if isinstance(args[1], tuple | list) else (args[1],)
            return _packed(CELLS[function], inputs, args[0], states, *args[2:])
        states = tuple(args[0]) if isinstance(args[0], tuple | list) else (args[0],)
        return _recurrent(CELLS[function], inputs, states, *args[1:])

    return body


for _function in CELLS:
    decomposition(_function)(_written_out(_function))


@decomposition(_VF.lstm_cell)
def _lstm_cell_call(
    inputs: Tensor, states: State, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
) -> State:
    return _lstm_cell(F.linear(inputs, w_ih, b_ih), F.linear(states[0], w_hh, b_hh), tuple(states))


def _single_cell(cell: Cell) -> Callable[..., Tensor]:
    def body(
        inputs: Tensor, state: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None
    ) -> Tensor:
        return cell(F.linear(inputs, w_ih, b_ih), F.linear(state, w_hh, b_hh), (state,))[0]

    return body


for _function, _cell in ((_VF.gru_cell, _gru_cell), (_VF.rnn_tanh_cell, _tanh_cell), (_VF.rnn_relu_cell, _relu_cell)):
    decomposition(_function)(_single_cell(_cell))
