# SPDX-License-Identifier: Apache-2.0
"""Layers of networks as functions, their weights being leaves."""

from __future__ import annotations

_IMAGE = "{0}.reshape(1, 1, -1, {0}.shape[-1])"
_SIGNAL = "{0}.reshape(1, 1, -1)"
_HEADS = "{0}.reshape(1, -1, {0}.shape[-1])"
_CHANNELS = "{0}.reshape({0}.shape[0], {0}.shape[1], -1)"

NETWORKS = (
    f"F.conv1d({_SIGNAL}, <{{1|2}}, 1, {{2|3}}>, <1>)",
    f"F.conv1d({_SIGNAL}, <1, 1, 2>, padding={{1|'same'}}, stride=1)",
    f"F.conv1d({_SIGNAL}, <2, 1, 2>, stride=2)",
    f"F.conv1d({_SIGNAL}, <1, 1, 2>, dilation=2)",
    f"F.conv1d({_CHANNELS}, <s[1], 1, 1>, groups={{0}}.shape[1])",
    f"F.conv2d({_IMAGE}, <{{1|2}}, 1, 2, 2>)",
    f"F.conv2d({_IMAGE}, <1, 1, 2, 2>, padding=1, stride={{1|2}})",
    f"F.conv_transpose1d({_SIGNAL}, <1, {{1|2}}, 2>, stride={{1|2}})",
    f"F.conv_transpose2d({_IMAGE}, <1, 1, 2, 2>, padding={{0|1}})",
    f"F.conv3d({_IMAGE}[None], <1, 1, 1, 2, 2>)",
    f"F.{{avg_pool1d|max_pool1d}}({_SIGNAL}, 2)",
    f"F.{{avg_pool2d|max_pool2d}}({_IMAGE}, 2, stride=1)",
    f"F.lp_pool1d({_SIGNAL}, {{2|3}}, 2)",
    f"F.{{adaptive_avg_pool1d|adaptive_max_pool1d}}({_SIGNAL}, 2)",
    f"F.adaptive_avg_pool2d({_IMAGE}, {{1|2}})",
    f"F.max_unpool1d(*F.max_pool1d({_SIGNAL}, 2, return_indices=True), 2)",
    "F.layer_norm({0}, {0}.shape[-1:])",
    "F.layer_norm({0}, {0}.shape[-1:], <s[-1]>, <s[-1]>)",
    "F.layer_norm({0}, {0}.shape[-1:], None, <s[-1]>, eps=1e-3)",
    "F.layer_norm({0}, {0}.shape)",
    "F.rms_norm({0}, {0}.shape[-1:], <s[-1]>, eps=1e-5)",
    "F.group_norm({0}, 1)",
    "F.group_norm({0}, {0}.shape[1], <s[1]>, <s[1]>)",
    f"F.instance_norm({_CHANNELS} * torch.linspace(1, 2, 3, dtype={{0}}.dtype))",
    "F.batch_norm({0}, None, None, training=True)",
    "F.batch_norm({0}, None, None, <s[1]>, <s[1]>, training=True)",
    "F.batch_norm({0}, torch.zeros({0}.shape[1], dtype={0}.dtype), "
    "torch.ones({0}.shape[1], dtype={0}.dtype), <s[1]>, <s[1]>)",
    f"F.local_response_norm({_CHANNELS}, 2)",
    f"F.scaled_dot_product_attention({_HEADS}, {_HEADS}, {_HEADS})",
    f"F.scaled_dot_product_attention({_HEADS}, {_HEADS}, {_HEADS}, is_causal=True)",
    f"F.scaled_dot_product_attention({_HEADS}[None], {_HEADS}[None].sin(), {_HEADS}[None])",
    f"F.scaled_dot_product_attention({_HEADS}, {_HEADS}, {_HEADS}, scale=0.3, attn_mask="
    "torch.ones({0}.numel() // {0}.shape[-1], {0}.numel() // {0}.shape[-1]).tril().bool())",
    "({0} @ {0}.mT / {0}.shape[-1] ** 0.5).softmax(-1) @ {0}",
    "({0} @ {0}.mT).masked_fill(torch.ones({0}.shape[-2], {0}.shape[-2]).triu(1).bool(), "
    "float('-inf')).softmax(-1) @ {0}",
    "F.multi_head_attention_forward({0}[:, None], {0}[:, None], {0}[:, None], {0}.shape[-1], 1, "
    "<3 * s[-1], s[-1]>, None, None, None, False, 0.0, torch.eye({0}.shape[-1], dtype={0}.dtype), "
    "None, training=False)[0]",
    "F.glu({0}, -1)",
    "F.glu(torch.cat([{0}, {0}.sin()], -1), -1)",
    f"F.interpolate({_IMAGE}, scale_factor=2, mode='{{nearest|bilinear|bicubic}}')",
    f"F.interpolate({_SIGNAL}, size=5, mode='linear', align_corners={{True|False}})",
    f"F.grid_sample({_IMAGE}, torch.linspace(-0.9, 0.8, 8, dtype={{0}}.dtype)"
    ".reshape(1, 2, 2, 2), align_corners=False)",
    "F.grid_sample(torch.linspace(-1, 1, 9, dtype={0}.dtype).reshape(1, 1, 3, 3), "
    "0.6 * {0}.tanh().reshape(-1)[:4].reshape(1, 1, 2, 2), align_corners=False)",
    "F.affine_grid({0}.reshape(-1)[:6].reshape(1, 2, 3), (1, 1, 2, 2), align_corners=False)",
    f"F.unfold({_IMAGE}, 2)",
    f"F.fold(F.unfold({_IMAGE}, 1), {_IMAGE}.shape[-2:], 1)",
    f"F.pixel_unshuffle({_IMAGE}, {{1|2}})",
    f"F.channel_shuffle({_CHANNELS}, 1)",
    "F.dropout({0}, 0.5, training=False)",
    "F.alpha_dropout({0}, 0.3, training=False)",
    "rnn_cell({0}, <2, s[-1]>, <2, 2>)",
    "gru_cell({0}, <6, s[-1]>, <6, 2>)",
    "lstm_cell({0}, <8, s[-1]>, <8, 2>)",
    "weight_normed({0}, <3, s[-1]>, <3, 1>)",
    "mixture({0}, <2, s[-1]>)",
    "torch.cosine_similarity({0}, <s[-1]>, dim=-1)",
    "F.gumbel_softmax({0}, tau=1.0) * 0 + {0}",
)
