"""The sampler's Euler step as a CUDA kernel, so that latents stay on the device between two steps.

The kernel is PTX, which the driver translates for the GPU: no CUDA compiler is needed. It has not run on a GPU yet.
ptxas 13.5 assembles it for compute capabilities 7.5 to 12.0, and the tests run its text on numpy.
"""

from __future__ import annotations

import ctypes
from typing import Any

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaContext

NEVER = 0xFFFFFFFF
"""Initial value of the step index at which a non-finite velocity was found ("none")."""

_THREADS = 256

PTX = """\
.version 7.0
.target sm_75
.address_size 64

.visible .entry euler(
    .param .u64 latents,
    .param .u64 toward,
    .param .u64 away,
    .param .u64 fault,
    .param .f32 guidance,
    .param .f32 delta,
    .param .u32 count,
    .param .u32 step
)
{
    .reg .pred %outside, %finite;
    .reg .b32 %block, %width, %index, %count, %step;
    .reg .b64 %offset, %latents, %toward, %away, %fault;
    .reg .f32 %guidance, %delta, %x, %t, %v;

    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %index, %tid.x;
    mad.lo.u32 %index, %block, %width, %index;
    ld.param.u32 %count, [count];
    setp.ge.u32 %outside, %index, %count;
    @%outside ret;

    mul.wide.u32 %offset, %index, 4;
    ld.param.u64 %latents, [latents];
    cvta.to.global.u64 %latents, %latents;
    add.u64 %latents, %latents, %offset;
    ld.param.u64 %toward, [toward];
    cvta.to.global.u64 %toward, %toward;
    add.u64 %toward, %toward, %offset;
    ld.param.u64 %away, [away];
    cvta.to.global.u64 %away, %away;
    add.u64 %away, %away, %offset;

    ld.global.f32 %t, [%toward];
    ld.global.f32 %v, [%away];
    ld.param.f32 %guidance, [guidance];
    sub.rn.f32 %t, %t, %v;
    mul.rn.f32 %t, %guidance, %t;
    add.rn.f32 %v, %v, %t;

    testp.finite.f32 %finite, %v;
    ld.param.u64 %fault, [fault];
    cvta.to.global.u64 %fault, %fault;
    ld.param.u32 %step, [step];
    @!%finite red.global.min.u32 [%fault], %step;

    ld.global.f32 %x, [%latents];
    ld.param.f32 %delta, [delta];
    mul.rn.f32 %v, %delta, %v;
    add.rn.f32 %x, %x, %v;
    st.global.f32 [%latents], %x;
    ret;
}
"""
"""The kernel: x += delta * (away + guidance * (toward - away)).

Each operation is rounded on its own, as numpy does. The sums equal the sums of `runtime.sampling.solver` bit for bit,
except for the sign of a zero. Without guidance `toward` and `away` are the same velocity, whose difference is 0. The
kernel stores the first step whose velocity is not finite."""


class EulerKernel:
    """The Euler kernel, loaded in a context."""

    def __init__(self, context: CudaContext) -> None:
        """Load the kernel.

        Raises:
            QwenImageError: the driver does not translate or load the kernel.
        """
        try:
            module = context.make(self, "cuModuleLoadData", "cuModuleUnload", ctypes.c_char_p(PTX.encode()))
        except OutOfDeviceMemory:
            raise
        except QwenImageError as error:
            raise QwenImageError(
                f"the driver does not translate the sampler's kernel ({error}); it needs libnvidia-ptxjitcompiler, "
                "which comes with the driver (in a container with the capability compute), and CUDA_DISABLE_PTX_JIT "
                "unset"
            ) from error
        function = ctypes.c_void_p()
        context.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"euler"))
        self._context, self._function = context, function

    def launch(
        self,
        stream: int,
        *,
        latents: int,
        toward: int,
        away: int,
        fault: int,
        guidance: float,
        delta: float,
        count: int,
        step: int,
    ) -> None:
        """Enqueue one step in a stream.

        Args:
            stream: handle of the stream.
            latents: address of `count` float32; the kernel overwrites them.
            toward: address of the velocity of the prompt, `count` float32.
            away: address of the velocity of the negative prompt, `count` float32; `toward` again without guidance.
            fault: address of a uint32, which becomes the least `step` whose velocity was not finite.
            guidance: guidance scale of `toward` over `away`.
            delta: following sigma minus current sigma.
            count: number of elements, less than 2^32.
            step: index of the step.

        Raises:
            QwenImageError: the driver does not launch the kernel.
        """
        values: tuple[ctypes._SimpleCData[Any], ...] = (
            *(ctypes.c_uint64(address) for address in (latents, toward, away, fault)),
            *(ctypes.c_float(value) for value in (guidance, delta)),
            *(ctypes.c_uint32(value) for value in (count, step)),
        )
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid, block = (-(-count // _THREADS), 1, 1), (_THREADS, 1, 1)
        sizes = (ctypes.c_uint(size) for size in (*grid, *block, 0))  # the last: shared memory
        self._context.call("cuLaunchKernel", self._function, *sizes, ctypes.c_void_p(stream), places, None)
