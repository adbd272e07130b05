"""One line that says what happened, out of what Ray wraps around it."""

import pytest
from ray.exceptions import RayTaskError

from morel_core.errors import ConfigError, MorelError
from orchestrator.messages.failures import failure_reason, out_of_memory, repeats

NESTED = """ray::MorelTrial.train() (pid=1, ip=127.0.0.1)
  File "worker.py", line 10, in step
    raise ConfigError(key, value, allowed)
morel_core.errors.ConfigError: training.batch_size = 5000: at most 1138

During handling of the above exception, another exception occurred:

ray.exceptions.RayTaskError(ConfigError): ray::MorelTrial.train()
  File "worker.py", line 10, in step
morel_core.errors.ConfigError: training.batch_size = 5000: at most 1138
"""


def raised(error, cause=None):
    """``error`` as it is after having been raised from ``cause``."""
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_a_plain_error():
    assert failure_reason(ValueError("no room")) == "ValueError: no room"


def test_the_innermost_cause_speaks():
    inner = ConfigError("training.batch_size", 5000, "at most 1138")
    middle = raised(RuntimeError("worker group failed"), inner)
    outer = raised(MorelError("run failed"), middle)
    assert failure_reason(outer) == "ConfigError: training.batch_size = 5000: at most 1138"


def test_a_wrapper_with_a_cause_attribute():
    wrapper = RuntimeError("in the worker")
    wrapper.cause = OSError("disk full")
    assert failure_reason(wrapper) == "OSError: disk full"


def test_rays_own_wrapper():
    cause = ConfigError("attack.eps", 8, "too large")
    error = RayTaskError("train", NESTED, cause)
    for wrapped in (error, error.as_instanceof_cause(), raised(RuntimeError("up"), error)):
        assert failure_reason(wrapped) == "ConfigError: attack.eps = 8: too large"


def test_causes_in_a_circle_end():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert failure_reason(first) in ("ValueError: first", "ValueError: second")


@pytest.mark.parametrize("error", [NESTED, RuntimeError(NESTED)])
def test_the_last_error_line_of_a_traceback(error):
    assert failure_reason(error) == "ConfigError: training.batch_size = 5000: at most 1138"


def test_always_one_line_and_not_too_long():
    reason = failure_reason(ValueError("first\n\n   second\n" + "x" * 2000))
    assert reason.startswith("ValueError: first second xxx")
    assert len(reason) == 500


def test_an_error_without_message():
    assert failure_reason(KeyboardInterrupt()).startswith("KeyboardInterrupt")


def test_nothing_at_all():
    assert failure_reason(None) == "unknown: Ray kept no error"


@pytest.mark.parametrize(
    "reason",
    [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate",
        "RuntimeError: [enforce fail] err == 0. DefaultCPUAllocator: not enough memory: you tried",
        "RuntimeError: CUDA error: out of memory",
        "AcceleratorError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MemoryError",
        "_ArrayMemoryError: Unable to allocate 1.2 GiB for an array",
        "OutOfMemoryError: Task was killed due to the node running low on memory.",
        "ActorDiedError: The actor died because ... killed due to the node running low on memory",
    ],
)
def test_memory_that_ran_out(reason):
    assert out_of_memory(reason)


def test_torchs_own_words_on_this_machine():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(failure_reason(caught.value))


def test_other_reasons():
    assert not out_of_memory("ValueError: no room")
    assert not out_of_memory("ActorDiedError: The actor died unexpectedly")
    assert not repeats("OutOfMemoryError: CUDA out of memory")
    assert not repeats("ValueError: MorelError")
    assert repeats(failure_reason(NESTED))
    assert repeats("MorelError: /runs/x: belongs to another network")
