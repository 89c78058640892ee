"""DisTrO written again from specs/swarm.md §2, in float64, tensor by tensor, with scipy's DCT.

Nothing of the engine is used here but the order of the tensors' names.
"""

import numpy as np
from scipy.fft import dctn, idctn


def side(size, most):
    """The largest divisor that is at most `most`."""
    return max(d for d in range(1, min(size, most) + 1) if size % d == 0)


def chunks(matrix, most):
    """A matrix as chunks [rows, columns, a, b]."""
    rows, columns = matrix.shape
    a, b = side(rows, most), side(columns, most)
    return matrix.reshape(rows // a, a, columns // b, b).swapaxes(1, 2)


def joined(pieces):
    """Chunks as a matrix again."""
    r, c, a, b = pieces.shape
    return pieces.swapaxes(1, 2).reshape(r * a, c * b)


def top(matrix, most, k):
    """The matrix of only the k largest coefficients of each chunk, in the transformed space."""
    freq = dctn(chunks(matrix, most), axes=(2, 3), norm="ortho")
    flat = freq.reshape(*freq.shape[:2], -1)
    keep = np.argsort(-np.abs(flat), axis=2, kind="stable")[..., : min(k, flat.shape[2])]
    kept = np.zeros_like(flat)
    np.put_along_axis(kept, keep, np.take_along_axis(flat, keep, 2), 2)
    return kept.reshape(freq.shape)


def back(freq):
    """Coefficients as a matrix."""
    return joined(idctn(freq, axes=(2, 3), norm="ortho"))


class Client:
    """One client of the fork: lookahead, update, and what it forgets a round later."""

    def __init__(self, shapes, most, k, decay, lookahead, at_once):
        self.delta = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.most, self.k, self.decay = most, k, decay
        self.lookahead, self.at_once = lookahead, at_once
        self.own = {}

    def ahead(self, theta, lr_before):
        if not self.lookahead:
            return theta
        return {name: theta[name] - lr_before * np.sign(self.delta[name]) for name in theta}

    def step(self, gradient, lr):
        for name, freq in self.own.items():
            self.delta[name] -= back(freq)
        sent = {}
        for name, g in gradient.items():
            self.delta[name] = self.decay * self.delta[name] + lr * g
            sent[name] = top(self.delta[name], self.most, self.k)
        self.own = dict(sent)
        if self.at_once:
            for name, freq in sent.items():
                self.delta[name] -= back(freq)
            self.own = {}
        return sent


def combine_elements(received, shapes):
    """Decode each peer, mean over those that sent something for the chunk of an element."""
    out = {}
    for name, shape in shapes.items():
        total, count = np.zeros(shape), np.zeros(shape)
        for _, sent in received:
            decoded = back(sent[name])
            live = np.any(sent[name] != 0, axis=(2, 3))
            tiles = joined(np.broadcast_to(live[:, :, None, None], sent[name].shape).astype(float))
            rows, columns = (min(x, y) for x, y in zip(decoded.shape, shape, strict=True))
            total[:rows, :columns] += decoded[:rows, :columns]
            count[:rows, :columns] += tiles[:rows, :columns]
        out[name] = total / np.maximum(count, 1)
    return out


def combine_coefficients(received):
    """Mean over the senders of a coefficient, then decoded."""
    out = {}
    for name in received[0][1]:
        freqs = np.stack([sent[name] for _, sent in received])
        senders = np.maximum((freqs != 0).sum(axis=0), 1)
        out[name] = back(freqs.sum(axis=0) / senders)
    return out
