"""Peak memory of a measurement against an ordinary forward and backward pass, over real architectures.

    python benchmarks/memory.py [NAME ...]

Each architecture runs in a process of its own, with every parameter trained. Above the start: an ordinary pass, K
formed during the backward pass (`gram_matrix`), and G with the factors of all layers (`per_sample_gradients`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "memory.json"
IMAGES = "model, inputs = models.{name}(num_classes=10).eval(), torch.randn({n}, 3, {size}, {size})"
TEXTS = "config = transformers.{config}({options}); model = transformers.{model}(config).eval()"
TOKENS = "; inputs = torch.randint(0, 1000, ({n}, {length}))"
SMALL_TEXT = "vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512"
CASES = {
    "perceptron 784-1024-1024-10": "model = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), "
    "nn.ReLU(), nn.Linear(1024, 10)); inputs = torch.randn(1024, 784)",
    "convolutions 3-32-64-128": "model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), "
    "nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), "
    "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)); inputs = torch.randn(128, 3, 32, 32)",
    "resnet18": IMAGES.format(name="resnet18", n=16, size=64),
    "resnet50": IMAGES.format(name="resnet50", n=16, size=64),
    "mobilenet_v3_small": IMAGES.format(name="mobilenet_v3_small", n=16, size=64),
    "efficientnet_b0": IMAGES.format(name="efficientnet_b0", n=16, size=64),
    "convnext_tiny": IMAGES.format(name="convnext_tiny", n=16, size=64),
    "densenet121": IMAGES.format(name="densenet121", n=16, size=64),
    "swin_t": IMAGES.format(name="swin_t", n=16, size=64),
    "vit_b_16": "model = models.vit_b_16(num_classes=10, image_size=64).eval(); inputs = torch.randn(16, 3, 64, 64)",
    "bert": TEXTS.format(config="BertConfig", model="BertForSequenceClassification", options=SMALL_TEXT)
    + TOKENS.format(n=64, length=64),
    "gpt2": TEXTS.format(
        config="GPT2Config",
        model="GPT2LMHeadModel",
        options="vocab_size=1000, n_embd=128, n_layer=4, n_head=4, n_positions=64",
    )
    + TOKENS.format(n=64, length=64),
    "llama": TEXTS.format(config="LlamaConfig", model="LlamaForCausalLM", options=SMALL_TEXT.replace("512", "352"))
    + TOKENS.format(n=64, length=64),
}
# Bytes above the start at the peak of some work, in a process of its own.
PEAK = """
def resident(key):
    return 1024 * int(open("/proc/self/status").read().split(key + ":")[1].split()[0])

def peak(work):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    start = resident("VmRSS")
    work()
    return resident("VmHWM") - start
"""
SCRIPT = """
import json, sys, warnings
import torch
from torch import nn
from torchvision import models
import sgdkern as sk
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
if {needs_transformers}:
    import transformers
{make}

def loss(outputs, targets):
    logits = getattr(outputs, "logits", outputs).flatten(1)
    return nn.functional.cross_entropy(logits[:, :10], targets, reduction="none")

targets = torch.arange(len(inputs)) % 2
few = model, loss, inputs[:3], targets[:3]
sk.gram_matrix(*few), sk.per_sample_gradients(*few).gram()  # imports, and the study

{peak}
problem = model, loss, inputs, targets
print(json.dumps(dict(
    samples=len(inputs), parameters=sum(parameter.numel() for parameter in model.parameters()),
    ordinary=peak(lambda: torch.autograd.grad(loss(model(inputs), targets).sum(), list(model.parameters()),
                                              allow_unused=True)),
    gram_matrix=peak(lambda: sk.gram_matrix(*problem)),
    per_sample_gradients=peak(lambda: sk.per_sample_gradients(*problem).gram()),
)))
"""


def run(script: str) -> dict[str, int]:
    """What a script prints last, as JSON, in a process of its own that returns freed memory at once."""
    # Without this the C library keeps freed tensors for itself as it happens, and the peak tells nothing.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str) -> dict[str, int]:
    """Bytes at the peaks, each above its start."""
    make = CASES[name]
    return run(SCRIPT.format(make=make, needs_transformers="transformers." in make, peak=PEAK))


def main() -> None:
    names = sys.argv[1:] or list(CASES)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print("| model | samples | parameters | ordinary pass, MiB | `gram_matrix` | `per_sample_gradients(...).gram()` |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        found[name] = row = measure(name)
        peaks = [f"{row[key] / 2**20:,.0f}" for key in ("ordinary", "gram_matrix", "per_sample_gradients")]
        print(f"| {name} | {row['samples']} | {row['parameters']:,} | {' | '.join(peaks)} |", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
