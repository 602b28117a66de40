"""Real architectures, made small: torchvision, timm, and Hugging Face models from tiny configurations."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def _loss(outputs: Any) -> Tensor:
    """Another gradient at every output, one number a sample."""
    flat = (outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state).flatten(1)
    return (flat.sin() * torch.arange(flat.shape[1], dtype=flat.dtype).cos()).sum(1)


def _torchvision(name: str, size: int, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        models = pytest.importorskip("torchvision.models", reason="torchvision's models are cases")
        model = getattr(models, name)(weights=None, num_classes=5, **options)
        return seasoned(model, size), (torch.randn(3, 3, size, size),)

    return make


# Larger weights are frozen, so that a dense G in float64 stays small; every kind of layer keeps trained ones.
LARGEST = 150_000


def seasoned(model: nn.Module, size: int) -> nn.Module:
    """A model in evaluation mode whose batch norms have seen data, so that signals keep their size with depth."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.numel() <= LARGEST)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.randn(8, 3, size, size))
    return model.eval()


def _timm(name: str, size: int) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        timm = pytest.importorskip("timm", reason="timm's models are cases")
        return seasoned(timm.create_model(name, num_classes=5), size), (torch.randn(3, 3, size, size),)

    return make


def _hugging_face(model: str, config: str, inputs: Callable[[], dict[str, Tensor]], **options: Any) -> Any:
    def make() -> tuple[nn.Module, Any]:
        transformers = pytest.importorskip("transformers", reason="Hugging Face's models are cases")
        transformers.logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(transformers, model)(getattr(transformers, config)(**options)).eval(), inputs()

    return make


def _ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 90, (3, 7))}


def _masked_ids() -> dict[str, Tensor]:
    mask = torch.arange(7) < torch.tensor([[7], [4], [5]])
    return {**_ids(), "attention_mask": mask.long()}


def _translated() -> dict[str, Tensor]:
    return {**_ids(), "decoder_input_ids": torch.randint(5, 90, (3, 4))}


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 16, 16)}


_BERT = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
_LLAMA = {
    "vocab_size": 99,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_GPT2 = {
    "vocab_size": 99,
    "n_positions": 20,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {
    "vocab_size": 99,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 4,
}
_RELATIVE = "layer.0.SelfAttention.relative_attention_bias.weight"

SLOW = {"slow": True}
TEXT = {"loss": _loss}

# name → (make, further fields of the case)
ARCHITECTURES: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], dict[str, Any]]] = {
    "resnet18": (_torchvision("resnet18", 40), {}),
    "mobilenet_v3_small": (_torchvision("mobilenet_v3_small", 40), {}),
    "resnet50": (_torchvision("resnet50", 40), SLOW),
    "efficientnet_b0": (_torchvision("efficientnet_b0", 40), SLOW),
    "convnext_tiny": (_torchvision("convnext_tiny", 64), SLOW),
    "vit_b_16": (_torchvision("vit_b_16", 32, image_size=32), SLOW),
    "swin_t": (_torchvision("swin_t", 64), SLOW),
    "densenet121": (_torchvision("densenet121", 40), SLOW),
    "shufflenet_v2_x1_0": (_torchvision("shufflenet_v2_x1_0", 40), SLOW),
    "timm-resnet10t": (_timm("resnet10t", 40), SLOW),
    "timm-mixer": (_timm("gmixer_12_224", 224), SLOW),
    "bert-classifier": (
        _hugging_face("BertForSequenceClassification", "BertConfig", _masked_ids, **_BERT),
        TEXT,
    ),
    "bert-masked": (_hugging_face("BertForMaskedLM", "BertConfig", _ids, **_BERT), TEXT),
    "gpt2": (_hugging_face("GPT2LMHeadModel", "GPT2Config", _ids, **_GPT2), TEXT),
    "llama": (_hugging_face("LlamaForCausalLM", "LlamaConfig", _ids, **_LLAMA), TEXT),
    "mistral": (_hugging_face("MistralForCausalLM", "MistralConfig", _ids, **_LLAMA), TEXT),
    "t5": (
        _hugging_face("T5ForConditionalGeneration", "T5Config", _translated, **_T5),
        {**TEXT, "explicit": (f"encoder.block.0.{_RELATIVE}", f"decoder.block.0.{_RELATIVE}")},
    ),
    "vit": (_hugging_face("ViTForImageClassification", "ViTConfig", _pixels, **_VIT), TEXT),
}
