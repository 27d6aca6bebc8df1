"""Of a GPU: in which precision fp32 is multiplied, while penalties are taken and afterwards."""

import pytest
import torch

from service.config.sections import TrainingSettings
from service.config.yaml import load_preset
from service.engine.device import full_precision, use_device


def allowed() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def _restored():
    before, benchmark = allowed(), torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize("tf32", [True, False])
def test_a_gpu_multiplies_as_it_is_told_but_for_what_is_in_full_precision(tf32):
    training = TrainingSettings(**load_preset("fashion")["training"] | {"tf32": tf32})
    use_device(training, torch.device("cuda"))
    assert allowed() == (tf32, tf32)
    assert torch.backends.cudnn.benchmark
    with full_precision():
        assert allowed() == (False, False)
    assert allowed() == (tf32, tf32)


def test_a_cpu_is_left_as_it_is():
    before = allowed(), torch.backends.cudnn.benchmark
    use_device(TrainingSettings(**load_preset("fashion")["training"]), torch.device("cpu"))
    with full_precision():
        pass
    assert (allowed(), torch.backends.cudnn.benchmark) == before
