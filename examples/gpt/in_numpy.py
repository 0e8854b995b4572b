"""The model in NumPy: every gradient by hand, that of attention by `attention_xp.attention_vjp`.

Every layer has the form of `attention_vjp`. It returns its output and a function, the vector-Jacobian product, that
takes the gradient of the loss by the output to the gradients by the arguments. The way back through the model is the way
forward, read from the bottom up. A gradient has the name of what it belongs to, with a d in front.
"""

import math
from collections.abc import Callable

import numpy as np

from attention_xp import attention_vjp
from gpt.weights import Array, Config, Layer, Weights


def linear(x: Array, w: Array) -> tuple[Array, Callable]:
    """Multiply with a matrix: (N, I) @ (I, O) -> (N, O)."""

    def vjp(dy: Array) -> tuple[Array, Array]:
        return dy @ w.T, x.T @ dy  # (N, O) @ (O, I) -> (N, I), (I, N) @ (N, O) -> (I, O)

    return x @ w, vjp  # (N, I) @ (I, O) -> (N, O)


def rms_norm(x: Array, gain: Array) -> tuple[Array, Callable]:
    """Scale every row to root mean square 1, then every column by its gain (Zhang and Sennrich, 2019)."""
    inverse = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.finfo(x.dtype).eps)  # (N, E) -> (N, 1)
    unit = x * inverse

    def vjp(dy: Array) -> tuple[Array, Array]:
        dunit = dy * gain
        along = np.mean(dunit * unit, axis=-1, keepdims=True)  # (N, E) -> (N, 1)
        # A longer or shorter row comes out the same: the part of the gradient along the row has no effect.
        return inverse * (dunit - unit * along), np.sum(dy * unit, axis=0)  # (N, E) -> (N, E), (E,)

    return unit * gain, vjp


def gelu(x: Array) -> tuple[Array, Callable]:
    """Let large values through and hold small ones back (Hendrycks and Gimpel, 2016, with their tanh)."""
    a, b = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    gate = np.tanh(a * x * (1 + b * square))

    def vjp(dy: Array) -> Array:
        slope = a * (1 + 3 * b * square) * (1 - gate * gate)  # of the gate; tanh' = 1 - tanh^2
        return 0.5 * dy * (1 + gate + x * slope)

    return 0.5 * x * (1 + gate), vjp


def attention(qkv: Array, config: Config) -> tuple[Array, Callable]:
    """Let every character look at itself and at those before it: (N, 3 * E) -> (N, E)."""
    H, S, E = config.heads, config.context, config.width
    split = qkv.reshape(-1, S, 3, H, E // H).transpose(2, 0, 3, 1, 4)  # (N, 3 * E) -> (3, B, H, S, D)
    output, attention_back = attention_vjp(*split, is_causal=True)  # 3 times (B, H, S, D) -> (B, H, S, D)

    def vjp(dy: Array) -> Array:
        dy = dy.reshape(-1, S, H, E // H).swapaxes(1, 2)  # (N, E) -> (B, H, S, D)
        gradients = attention_back(dy)
        dsplit = np.stack([gradients.query, gradients.key, gradients.value])  # 3 times (B, H, S, D) -> (3, B, H, S, D)
        return dsplit.transpose(1, 3, 0, 2, 4).reshape(-1, 3 * E)  # (3, B, H, S, D) -> (N, 3 * E)

    return output.swapaxes(1, 2).reshape(-1, E), vjp  # (B, H, S, D) -> (N, E)


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean of -log p(target), and its gradient at once, as it is the end of the model: (N, V) -> ()."""
    shifted = logits - np.max(logits, axis=-1, keepdims=True)  # exp cannot overflow
    total = np.sum(np.exp(shifted), axis=-1, keepdims=True)  # (N, V) -> (N, 1)
    rows = np.arange(targets.size)
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, targets])  # (N,) -> ()
    dlogits = np.exp(shifted) / total
    dlogits[rows, targets] -= 1  # what was predicted less what is right
    return float(loss), dlogits / targets.size


def block(x: Array, layer: Layer, config: Config) -> tuple[Array, Callable]:
    """Add to x (N, E) first what attention finds, then what two dense layers make of it."""
    normed, attention_norm_back = rms_norm(x, layer.attention_norm)
    qkv, qkv_back = linear(normed, layer.qkv)  # (N, E) -> (N, 3 * E)
    mixed, attention_back = attention(qkv, config)  # (N, 3 * E) -> (N, E)
    projected, project_back = linear(mixed, layer.project)
    x = x + projected
    normed, mlp_norm_back = rms_norm(x, layer.mlp_norm)
    wide, widen_back = linear(normed, layer.widen)  # (N, E) -> (N, 4 * E)
    gated, gelu_back = gelu(wide)
    narrow, narrow_back = linear(gated, layer.narrow)  # (N, 4 * E) -> (N, E)

    def vjp(dx: Array) -> tuple[Array, Layer]:
        dgated, dnarrow = narrow_back(dx)  # (N, E) -> (N, 4 * E)
        dnormed, dwiden = widen_back(gelu_back(dgated))  # (N, 4 * E) -> (N, E)
        dbranch, dmlp_norm = mlp_norm_back(dnormed)
        dx = dx + dbranch  # x went both ways, past the branch and through it: its gradients add up
        dmixed, dproject = project_back(dx)
        dnormed, dqkv = qkv_back(attention_back(dmixed))  # (N, E) -> (N, 3 * E) -> (N, E)
        dbranch, dattention_norm = attention_norm_back(dnormed)
        return dx + dbranch, Layer(dattention_norm, dqkv, dproject, dmlp_norm, dwiden, dnarrow)

    return x + narrow, vjp


def forward(weights: Weights, ids: Array, config: Config) -> tuple[Array, Callable]:
    """Return the logits of the character that follows each of ids: (B, S) -> (N, V)."""
    x = (weights.tokens[ids] + weights.positions).reshape(-1, config.width)  # (B, S) -> (B, S, E) -> (N, E)
    backs = []
    for layer in weights.each_layer():
        x, back = block(x, layer, config)
        backs.append(back)
    normed, norm_back = rms_norm(x, weights.norm)
    logits, head_back = linear(normed, weights.tokens.T)  # (N, E) @ (E, V) -> (N, V)

    def vjp(dlogits: Array) -> Weights:
        dnormed, dhead = head_back(dlogits)  # (N, V) -> (N, E), (E, V)
        dx, dnorm = norm_back(dnormed)
        dlayers = []
        for back in reversed(backs):
            dx, dlayer = back(dx)
            dlayers.append(dlayer)
        stacked = Layer(*map(np.stack, zip(*reversed(dlayers), strict=True)))  # L times (...) -> (L, ...)
        dtokens = dhead.T.copy()  # (E, V) -> (V, E), the table as output,
        np.add.at(dtokens, ids.reshape(-1), dx)  # (N, E) -> (V, E), and as input
        dpositions = np.sum(dx.reshape(-1, *weights.positions.shape), axis=0)  # (N, E) -> (B, S, E) -> (S, E)
        return Weights(dtokens, dpositions, dnorm, stacked)

    return logits, vjp


class Model:
    """The model and its optimiser, Adam (Kingma and Ba, 2015)."""

    def __init__(self, weights: Weights, config: Config) -> None:
        self.config = config
        self.weights = Weights(*(w.copy() for w in weights[:-1]), Layer(*(w.copy() for w in weights.layers)))
        self.means = [np.zeros_like(w) for w in self.weights.arrays()]
        self.squares = [np.zeros_like(w) for w in self.weights.arrays()]
        self.steps = 0

    def logits(self, ids: Array) -> Array:
        """Return the logits of the next characters: (B, S) -> (B, S, V)."""
        return forward(self.weights, ids, self.config)[0].reshape(*ids.shape, -1)  # (N, V) -> (B, S, V)

    def gradients(self, ids: Array, targets: Array) -> tuple[float, Weights]:
        """Return the loss of a batch, (B, S) both, and its gradients."""
        logits, back = forward(self.weights, ids, self.config)
        loss, dlogits = cross_entropy(logits, targets.reshape(-1))  # (B, S) -> (N,)
        return loss, back(dlogits)

    def step(self, ids: Array, targets: Array) -> float:
        """Learn from a batch and return the loss before."""
        loss, gradients = self.gradients(ids, targets)
        self.steps += 1
        c = self.config
        # Both running means start at zero; early on, that draws them to zero by these factors.
        warm_mean, warm_square = 1 - c.decay_mean**self.steps, 1 - c.decay_square**self.steps
        for w, g, mean, square in zip(self.weights.arrays(), gradients.arrays(), self.means, self.squares, strict=True):
            mean[:] += (1 - c.decay_mean) * (g - mean)
            square[:] += (1 - c.decay_square) * (g * g - square)
            w[:] -= c.learning_rate * (mean / warm_mean) / (np.sqrt(square / warm_square) + c.epsilon)
        return loss
