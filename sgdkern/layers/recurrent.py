"""Recurrent layers as the linear layers that they are made of, written out in functions that have rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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


def _layers(
    direction: Callable[..., tuple[Tensor, State]],
    inputs: Tensor,
    states: State,
    flat: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """All layers of `torch._VF.lstm`, ``gru`` or ``rnn``: outputs, and the last states."""
    directions = 2 if bidirectional else 1
    count = len(flat) // (num_layers * directions)
    outputs = inputs
    last: list[State] = []
    for depth in range(num_layers):
        if depth and dropout and train:
            outputs = F.dropout(outputs, dropout)
        sides = []
        for side in range(directions):
            place = depth * directions + side
            given: Sequence[Any] = flat[place * count : (place + 1) * count]
            biases: Sequence[Any] = given[2:4] if has_biases else (None, None)
            projection = given[-1] if count in (3, 5) else None
            state = tuple(part[place] for part in states)
            hidden, state = direction(outputs, state, [*given[:2], *biases, projection], side == 1)
            sides.append(hidden)
            last.append(state)
        outputs = torch.cat(sides, -1) if bidirectional else sides[0]
    return (outputs, *(torch.stack([state[part] for state in last]) for part in range(len(states))))


def _packed_direction(
    cell: Cell, sizes: list[int], rows: Tensor, state: State, weights: Sequence[Any], reverse: bool
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


def _states(given: Any) -> State:
    """The states as a tuple, of which an LSTM has two."""
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _written_out(function: Any) -> Callable[..., tuple[Tensor, ...]]:
    """The fused function's equal."""
    cell = CELLS[function]

    def body(inputs: Tensor, *args: Any) -> tuple[Tensor, ...]:
        if isinstance(args[0], Tensor) and args[0].dtype == torch.int64:  # (rows, batch_sizes, hx, …)
            sizes, states, *rest = args
            return _layers(partial(_packed_direction, cell, sizes.tolist()), inputs, _states(states), *rest)
        states, *rest, batch_first = args
        if not batch_first:
            return _layers(partial(_direction, cell), inputs, _states(states), *rest)
        outputs, *last = _layers(partial(_direction, cell), inputs.transpose(0, 1), _states(states), *rest)
        return (outputs.transpose(0, 1), *last)

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
