# SPDX-License-Identifier: Apache-2.0
"""The models of the table, as their libraries have them: from a config, unedited, small."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hesse

_WORDS, _TIME, _WIDTH, _CLASSES = 11, 5, 8, 3
_BLOCKS = {
    "vocab_size": _WORDS,
    "hidden_size": _WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _transformer(name: str, **config: Any) -> nn.Module:
    """A model of the library `transformers`, with random weights."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # or one that was built for another torch
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    import transformers

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, name)
    return kind(kind.config_class(**config)).eval()


def _language(model: nn.Module) -> hesse.Risk:
    """The next word, of three sequences in two batches."""
    words = torch.randint(0, _WORDS, (3, _TIME))

    def loss(out: Any, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(getattr(out, "logits", out).flatten(0, 1), targets.flatten())

    return hesse.Risk(model, loss, [(part, part.roll(-1, 1)) for part in words.split((2, 1))])


def _pictures(model: nn.Module, side: int) -> hesse.Risk:
    data = torch.randn(4, 3, side, side), torch.randint(0, _CLASSES, (4,))
    return hesse.Risk(model, lambda out, y: F.cross_entropy(out.logits, y), data)


def _gpt2() -> hesse.Risk:
    sizes = {"vocab_size": _WORDS, "n_positions": 8, "n_embd": _WIDTH, "n_layer": 2, "n_head": 2}
    return _language(_transformer("GPT2LMHeadModel", **sizes, bos_token_id=0, eos_token_id=0))


def _llama() -> hesse.Risk:
    return _language(_transformer("LlamaForCausalLM", **_BLOCKS, num_key_value_heads=1))


def _bert() -> hesse.Risk:
    return _language(_transformer("BertForMaskedLM", **_BLOCKS, max_position_embeddings=8))


def _vit() -> hesse.Risk:
    sizes = {key: size for key, size in _BLOCKS.items() if key != "vocab_size"}
    sizes |= {"image_size": 8, "patch_size": 4, "num_labels": _CLASSES}
    return _pictures(_transformer("ViTForImageClassification", **sizes), 8)


def _resnet18() -> hesse.Risk:
    sizes = {"layer_type": "basic", "depths": [2, 2, 2, 2], "num_labels": _CLASSES}
    sizes |= {"embedding_size": 4, "hidden_sizes": [4, 6, 8, 10]}
    return _pictures(_transformer("ResNetForImageClassification", **sizes), 32)


class _WordByWord(nn.Module):
    """An embedding, two layers of `nn.LSTM`, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH)
        self.lstm = nn.LSTM(_WIDTH, _WIDTH, num_layers=2, batch_first=True)
        self.head = nn.Linear(_WIDTH, _WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(words))[0])


def _lstm() -> hesse.Risk:
    return _language(_WordByWord())


def _mixtral() -> hesse.Risk:
    sizes = {"num_key_value_heads": 1, "num_local_experts": 3}
    return _language(_transformer("MixtralForCausalLM", **_BLOCKS, **sizes))


MODELS: dict[str, Callable[[], hesse.Risk]] = {
    "GPT-2": _gpt2,
    "Llama": _llama,
    "BERT": _bert,
    "ViT": _vit,
    "ResNet-18": _resnet18,
    "LSTM": _lstm,
    "Mixtral": _mixtral,
}
