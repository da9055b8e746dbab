"""Transformers as the library `transformers` has them, unedited: 3 layers, random weights.

The attention is the default one (`sdpa`). Only the outputs are unpacked: `Logits` takes the logits
out of the record that these models return, since some peers know tensors alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from benchmarks.models.losses import TokenCrossEntropy
from benchmarks.models.seeded import integers, normal, seeded
from benchmarks.problem import ModelAndLoss, Problem

VOCABULARY, WIDTH, HEADS, LAYERS, BATCH, TIME = 512, 128, 4, 3, 8, 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": TIME,
}


def library() -> ModuleType:
    """`transformers`; it need not know of a torchvision that was built for another torch."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


class Logits(nn.Module):
    """The logits of a model of `transformers`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).logits


def gpt2() -> Problem:
    """`GPT2LMHeadModel`, whose embedding and output weights are tied."""
    hf = library()
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=TIME, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _language_model("gpt2", lambda: hf.GPT2LMHeadModel(config))


def llama() -> Problem:
    """`LlamaForCausalLM`: RMSNorm, rotary positions, grouped keys and values."""
    hf = library()
    config = hf.LlamaConfig(
        **SIZES, intermediate_size=344, num_key_value_heads=2, bos_token_id=0, eos_token_id=0
    )
    return _language_model("llama", lambda: hf.LlamaForCausalLM(config))


def bert() -> Problem:
    """`BertForMaskedLM`."""
    hf = library()
    config = hf.BertConfig(**SIZES, intermediate_size=4 * WIDTH)
    return _language_model("bert", lambda: hf.BertForMaskedLM(config))


def vit() -> Problem:
    """`ViTForImageClassification` on 32 x 32 pixels in patches of 4."""
    hf = library()
    config = hf.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, image_size=32, patch_size=4, num_labels=10,
    )  # fmt: skip
    model = seeded(lambda: Logits(hf.ViTForImageClassification(config)))
    images, labels = normal(BATCH, 3, 32, 32), integers(10, BATCH)
    parts = ModelAndLoss(model, nn.CrossEntropyLoss(), images, labels)
    return Problem.of("vit", parts, fused="attention")


def _language_model(name: str, build: Callable[[], nn.Module]) -> Problem:
    # Token 0 is padding to BERT, whose gradient torch leaves out: then it is no gradient of f.
    text = integers(VOCABULARY - 1, BATCH, TIME + 1) + 1
    model = seeded(lambda: Logits(build()))
    parts = ModelAndLoss(model, TokenCrossEntropy(), text[:, :-1], text[:, 1:])
    return Problem.of(name, parts, fused="attention")
