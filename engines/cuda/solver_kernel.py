"""A stage of a solver as a CUDA kernel, so that latents stay on the device between two stages.

The kernel is PTX, which the driver translates for the GPU: no CUDA compiler is needed. It has not run on a GPU yet.
ptxas 13.5 assembles it for compute capabilities 7.5 to 12.0, and the tests run its text on numpy.
"""

from __future__ import annotations

import ctypes
from typing import Any

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError
from qwen_image_engine.engines.core.loop import Stage
from qwen_image_engine.engines.cuda.memory import CudaContext

NEVER = 0xFFFFFFFF
"""Initial value of the stage index at which a non-finite velocity was found ("none")."""

_THREADS = 256

PTX = """\
.version 7.0
.target sm_75
.address_size 64

.visible .entry stage(
    .param .u64 latents,
    .param .u64 toward,
    .param .u64 away,
    .param .u64 before,
    .param .u64 earlier,
    .param .u64 fault,
    .param .f32 guidance,
    .param .f32 p,
    .param .f32 q,
    .param .f32 a,
    .param .f32 b,
    .param .f32 c,
    .param .f32 d,
    .param .u32 count,
    .param .u32 index
)
{
    .reg .pred %outside, %finite;
    .reg .b32 %block, %width, %thread, %count, %index;
    .reg .b64 %offset, %latents, %toward, %away, %before, %earlier, %fault;
    .reg .f32 %guidance, %weight, %x, %t, %v, %m, %sum;

    mov.u32 %block, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %thread, %block, %width, %thread;
    ld.param.u32 %count, [count];
    setp.ge.u32 %outside, %thread, %count;
    @%outside ret;

    mul.wide.u32 %offset, %thread, 4;
    ld.param.u64 %latents, [latents];
    cvta.to.global.u64 %latents, %latents;
    add.u64 %latents, %latents, %offset;
    ld.param.u64 %toward, [toward];
    cvta.to.global.u64 %toward, %toward;
    add.u64 %toward, %toward, %offset;
    ld.param.u64 %away, [away];
    cvta.to.global.u64 %away, %away;
    add.u64 %away, %away, %offset;
    ld.param.u64 %before, [before];
    cvta.to.global.u64 %before, %before;
    add.u64 %before, %before, %offset;
    ld.param.u64 %earlier, [earlier];
    cvta.to.global.u64 %earlier, %earlier;
    add.u64 %earlier, %earlier, %offset;

    ld.global.f32 %t, [%toward];
    ld.global.f32 %v, [%away];
    ld.param.f32 %guidance, [guidance];
    sub.rn.f32 %t, %t, %v;
    mul.rn.f32 %t, %guidance, %t;
    add.rn.f32 %v, %v, %t;

    testp.finite.f32 %finite, %v;
    ld.param.u64 %fault, [fault];
    cvta.to.global.u64 %fault, %fault;
    ld.param.u32 %index, [index];
    @!%finite red.global.min.u32 [%fault], %index;

    ld.global.f32 %x, [%latents];
    ld.param.f32 %weight, [p];
    mul.rn.f32 %m, %weight, %x;
    ld.param.f32 %weight, [q];
    mul.rn.f32 %t, %weight, %v;
    add.rn.f32 %m, %m, %t;

    ld.param.f32 %weight, [a];
    mul.rn.f32 %sum, %weight, %x;
    ld.param.f32 %weight, [b];
    mul.rn.f32 %t, %weight, %m;
    add.rn.f32 %sum, %sum, %t;
    ld.global.f32 %v, [%before];
    ld.param.f32 %weight, [c];
    mul.rn.f32 %t, %weight, %v;
    add.rn.f32 %sum, %sum, %t;
    ld.global.f32 %v, [%earlier];
    ld.param.f32 %weight, [d];
    mul.rn.f32 %t, %weight, %v;
    add.rn.f32 %sum, %sum, %t;

    st.global.f32 [%earlier], %m;
    st.global.f32 [%latents], %sum;
    ret;
}
"""
"""The kernel: v = away + guidance * (toward - away), then the two sums of `engines.core.loop.Stage`.

Each operation is rounded on its own, as numpy does. The sums equal the sums of `runtime.sampling.solver` bit for bit,
except for the sign of a zero. Without guidance `toward` and `away` are the same velocity, whose difference is 0. The
stage's term takes the place of the older of the two before it. The kernel stores the first stage whose velocity is not
finite."""


class SolverKernel:
    """The kernel, loaded in a context."""

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
        context.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"stage"))
        self._context, self._function = context, function

    def launch(
        self,
        stream: int,
        *,
        stage: Stage,
        latents: int,
        toward: int,
        away: int,
        before: int,
        earlier: int,
        fault: int,
        guidance: float,
        count: int,
        index: int,
    ) -> None:
        """Enqueue one stage in a stream.

        Args:
            stream: handle of the stream.
            stage: constants of the stage.
            latents: address of `count` float32; the kernel overwrites them.
            toward: address of the velocity of the prompt, `count` float32.
            away: address of the velocity of the negative prompt, `count` float32; `toward` again without guidance.
            before: address of the term of the stage before, `count` finite float32.
            earlier: address of the term of the stage before that, which the kernel overwrites with this stage's.
            fault: address of a uint32, which becomes the least `index` whose velocity was not finite.
            guidance: guidance scale of `toward` over `away`.
            count: number of elements, less than 2^32.
            index: index of the stage.

        Raises:
            QwenImageError: the driver does not launch the kernel.
        """
        values: tuple[ctypes._SimpleCData[Any], ...] = (
            *(ctypes.c_uint64(address) for address in (latents, toward, away, before, earlier, fault)),
            *(ctypes.c_float(value) for value in (guidance, stage.p, stage.q, stage.a, stage.b, stage.c, stage.d)),
            *(ctypes.c_uint32(value) for value in (count, index)),
        )
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        grid, block = (-(-count // _THREADS), 1, 1), (_THREADS, 1, 1)
        sizes = (ctypes.c_uint(size) for size in (*grid, *block, 0))  # the last: shared memory
        self._context.call("cuLaunchKernel", self._function, *sizes, ctypes.c_void_p(stream), places, None)
