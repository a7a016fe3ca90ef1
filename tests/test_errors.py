from __future__ import annotations

import pytest
import torch

from lora_trainer.errors import says_out_of_memory
from lora_trainer.jobs.diagnosis import diagnose_error
from lora_trainer.training.memory import is_out_of_memory

OUT_OF_MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 MiB",
    "CUDA error: out of memory",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "MPS backend out of memory (MPS allocated: 5.10 GB)",
    "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory",
    "The paging file is too small for this operation to complete. (os error 1455)",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "FIND was unable to find an engine to execute this computation",
    "GET was unable to find an engine to execute this computation",
]
OTHERS = [
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_memory_that_ran_out_is_known_by_every_library_s_words(message):
    error = RuntimeError(message)
    assert says_out_of_memory(error) and is_out_of_memory(error)
    assert diagnose_error(error, {"batch_size": 4})[0].field == "batch_size"


@pytest.mark.parametrize("message", OTHERS)
def test_other_failures_are_not_taken_for_it(message):
    error = RuntimeError(message)
    assert not says_out_of_memory(error) and not is_out_of_memory(error)


def test_it_is_known_by_its_type():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.cuda.OutOfMemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))
