// Integers and element types. Bare NVRTC has no headers: what <stdint.h>, <cuda_fp16.h> and <cuda_bf16.h> would give is
// spelled out here. Every other file starts from this one.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

#define F32 0
#define F16 1
#define BF16 2

// An element in memory, by its number in DTYPE: converts to and from f32, in which everything is computed.
template <int dtype>
struct Element;

template <>
struct Element<F32> {
    typedef float Bits;
    static __device__ __forceinline__ float widen(float bits) { return bits; }
    static __device__ __forceinline__ float narrow(float value) { return value; }
};

template <>
struct Element<F16> {
    typedef u16 Bits;
    static __device__ __forceinline__ float widen(u16 bits) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
        return value;
    }
    // To nearest, ties to even; overflow is an infinity.
    static __device__ __forceinline__ u16 narrow(float value) {
        u16 bits;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
    }
};

template <>
struct Element<BF16> {
    typedef u16 Bits;
    static __device__ __forceinline__ float widen(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }
    static __device__ __forceinline__ u16 narrow(float value) {
#if __CUDA_ARCH__ >= 800
        u16 bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        return bits;
#else
        // Adding 0x7fff plus the lowest bit that is kept rounds half to even; a NaN is kept quiet.
        u32 bits = __float_as_uint(value);
        u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return static_cast<u16>(value != value ? (bits >> 16) | 0x40u : rounded);
#endif
    }
};

// First in every kernel, before it touches memory. A kernel is started while the one before it in the stream still runs
// (programmatic dependent launch): its blocks take what room is left, and wait here until that one is done and what it
// wrote can be seen. Each kernel has to, one that leaves nothing to wait for included: the kernel after it waits for this
// one alone.
//
// None of these does anything in a kernel that was launched without the attribute.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel is started once one thread of each block has been here, or the block is done.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// What most kernels do: where the next one waits as well, it can come as early as it likes.
__device__ __forceinline__ void follow() {
    let_next_start();
    wait_for_previous();
}
