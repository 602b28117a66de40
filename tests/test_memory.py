"""Peak memory, measured in processes of their own: never samples x parameters."""

import resource
import subprocess
import sys

import pytest

MODELS = {
    "perceptron": """
model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
inputs, targets = torch.randn(500, 784), torch.randint(0, 10, (500,))
""",
    "convolutional": """
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(),
    nn.Linear(512, 10),
)
inputs, targets = torch.randn(200, 3, 32, 32), torch.randint(0, 10, (200,))
""",
}
SCRIPT = """
import resource, torch
from torch import nn
from sgdkern.capture import per_sample_gradients
torch.set_num_threads(1)
torch.manual_seed(0)
{model}
per_sample_gradients(model, nn.CrossEntropyLoss(), inputs[:3], targets[:3]).gram()  # imports, and the study
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = peak()
{work}
print(peak() - start, sum(p.numel() for p in model.parameters()), len(inputs))
"""
PASS = "nn.functional.cross_entropy(model(inputs), targets).backward()"
GRAM = "per_sample_gradients(model, nn.CrossEntropyLoss(), inputs, targets).gram()"


def peak(model: str, work: str) -> tuple[int, int, int]:
    """Bytes above the start at the peak, P, and N."""
    script = SCRIPT.format(model=MODELS[model], work=work)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    above, num_params, num_samples = map(int, done.stdout.split())
    return above, num_params, num_samples


@pytest.mark.skipif(sys.platform != "linux", reason=f"unit of {resource.getrusage.__name__}'s peak differs elsewhere")
@pytest.mark.parametrize("model", MODELS)
def test_peak_above_forward_and_backward(model: str) -> None:
    """At most K, one chunk of rows and one of patches (64 MiB each) above an ordinary forward and backward pass."""
    ordinary, _, _ = peak(model, PASS)
    found, num_params, num_samples = peak(model, GRAM)
    assert found - ordinary <= 4 * num_samples**2 + 2 * 64 * 2**20
    assert found - ordinary < 4 * num_samples * num_params / 4
