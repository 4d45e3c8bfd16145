"""A latent model with text: an autoencoder as codec, and a network that attends to tokens."""

import torch
from torch import nn

from scoresde import Codec, Network, UsageError, register
from scoresde.condition import describe


@register
class OrthonormalAutoencoder(nn.Module, Codec):
    """Images `(1, side, side)` as latents `(width,)` along orthonormal directions; its weights are fixed."""

    def __init__(self, side, width):
        super().__init__()
        self.side = side
        self.width = width
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("basis", torch.linalg.qr(torch.randn(side**2, width, generator=generator)).Q)

    def encode(self, raw, dtype=torch.float32):
        return raw.flatten(1).to(dtype) @ self.basis.to(dtype)

    def decode(self, x):
        return (x @ self.basis.T.to(x.dtype)).view(-1, 1, self.side, self.side)

    def encoded_shape(self, raw_shape):
        return (self.width,) if raw_shape == (1, self.side, self.side) else raw_shape


@register
class TextNetwork(Network):
    """A network for vectors that attends to token embeddings; token 0 stands for no text.

    The condition is {"tokens": (B, L) whole numbers, "mask": (B, L) True where there is a token}.
    """

    def __init__(self, dim, num_tokens, width=64, cond_dropout=0.1):
        super().__init__()
        self.dim = dim
        self.num_tokens = num_tokens
        self.width = width
        self.cond_dropout = cond_dropout
        self.first = nn.Linear(dim + 1, width)
        self.embedding = nn.Embedding(num_tokens, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.last = nn.Sequential(nn.SiLU(), nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x, c_noise, cond=None):
        h = self.first(torch.cat([x, c_noise[:, None]], 1))
        tokens = self.embedding(cond["tokens"])
        read, _ = self.attention(h[:, None], tokens, tokens, key_padding_mask=~cond["mask"])
        return self.last(torch.cat([h, read[:, 0]], 1))

    def check_cond(self, cond):
        if not isinstance(cond, dict) or cond.keys() != {"tokens", "mask"}:
            raise UsageError(f"cond: {describe(cond)}; need {{'tokens': (B, L), 'mask': (B, L)}}")
        if int(cond["tokens"].max()) >= self.num_tokens:
            raise UsageError(f"cond['tokens']: {int(cond['tokens'].max())}; need 0..{self.num_tokens - 1}")

    def null_cond(self, cond, hidden):
        first = torch.zeros_like(cond["mask"])
        first[:, 0] = True
        hidden = hidden[:, None]
        return {
            "tokens": cond["tokens"].masked_fill(hidden, 0),
            "mask": torch.where(hidden, first, cond["mask"]),
        }
