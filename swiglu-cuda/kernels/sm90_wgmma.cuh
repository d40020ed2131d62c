// Products of a warpgroup on the tensor cores: wgmma, which reads both operands from shared memory.
//
// PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions": the matrix descriptor, the canonical
// layouts behind it and the layout of the accumulator.
#pragma once
#include "types.cuh"

// The accumulators of n = 128 and n = 256, as the instruction numbers its operands and as the compiler is handed them.
#define WGMMA_0_63 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_64_79 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_80_95 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_96_127 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_64_127 WGMMA_64_79 ", " WGMMA_80_95 ", " WGMMA_96_127
#define WGMMA_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_16(d, i) WGMMA_4(d, i), WGMMA_4(d, i + 4), WGMMA_4(d, i + 8), WGMMA_4(d, i + 12)
#define WGMMA_64(d) WGMMA_16(d, 0), WGMMA_16(d, 16), WGMMA_16(d, 32), WGMMA_16(d, 48)

#if DTYPE == F16
#define WGMMA_TYPES "f32.f16.f16"
#else
#define WGMMA_TYPES "f32.bf16.bf16"
#endif

// Sums of 64 rows and 128 columns in the registers of a warpgroup: element 4 * j + i of a thread is in row
// 16 * warp + lane / 4 + i / 2 * 8, column 8 * j + lane % 4 * 2 + i % 2.
typedef float Sums[64];

#if TF32

// d = d * keep + a . b for 8 of k, where keep is 0 or 1, for 64 rows and 128 columns. tf32 is read only along k. The sums
// are the tensor cores' until wait_for_products.
template <bool a_trans, bool b_trans>
__device__ __forceinline__ void multiply(Sums& d, u64 a, u64 b, bool keep) {
    static_assert(!a_trans && !b_trans, "wgmma transposes 16-bit elements only");
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {" WGMMA_0_63 "}, %64, %65, keep, 1, 1;\n}"
        : WGMMA_64(d)
        : "l"(a), "l"(b), "r"(static_cast<u32>(keep)));
}

// The same for 256 columns, left and right 128, all of which are kept.
template <bool a_trans, bool b_trans>
__device__ __forceinline__ void multiply(Sums& left, Sums& right, u64 a, u64 b) {
    static_assert(!a_trans && !b_trans, "wgmma transposes 16-bit elements only");
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32 {" WGMMA_0_63 ", " WGMMA_64_127 "}, %128, %129, 1, 1, 1;"
        : WGMMA_64(left), WGMMA_64(right)
        : "l"(a), "l"(b));
}

#else

// d = d * keep + a . b for 16 of k, where keep is 0 or 1, for 64 rows and 128 columns. `a_trans` and `b_trans` say that
// the operand is contiguous along m or n in place of k. The sums are the tensor cores' until wait_for_products.
template <bool a_trans, bool b_trans>
__device__ __forceinline__ void multiply(Sums& d, u64 a, u64 b, bool keep) {
    asm volatile(
        "{\n.reg .pred keep;\nsetp.ne.b32 keep, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES
        " {" WGMMA_0_63 "}, %64, %65, keep, 1, 1, %67, %68;\n}"
        : WGMMA_64(d)
        : "l"(a), "l"(b), "r"(static_cast<u32>(keep)), "n"(a_trans), "n"(b_trans));
}

// The same for 256 columns, left and right 128, all of which are kept. A comes out of shared memory once for both.
template <bool a_trans, bool b_trans>
__device__ __forceinline__ void multiply(Sums& left, Sums& right, u64 a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16." WGMMA_TYPES " {" WGMMA_0_63 ", " WGMMA_64_127
        "}, %128, %129, 1, 1, 1, %130, %131;"
        : WGMMA_64(left), WGMMA_64(right)
        : "l"(a), "l"(b), "n"(a_trans), "n"(b_trans));
}

#endif

// Registers and shared memory that were written before are there for the products that follow.
__device__ __forceinline__ void fence_operands() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `pending` of the groups are not done.
template <u32 pending>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Arithmetic on sums stays on its side of this: behind the wait for the products before, and before the fence of those
// that follow. To the compiler it is no access to memory, so it may move it past both; ptxas then puts in another fence
// (C7519).
__device__ __forceinline__ void keep_in_order(Sums& d) {
#pragma unroll
    for (u32 i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Between products of 128 and of 256 columns, when none are pending. It costs nothing: the moves end up as moves to the
// same register. But ptxas needs to see them: to it, a tuple of 128 registers and two of 64 are different values, and
// where they follow each other directly it makes room for both, fails, and waits after each product (C7511).
__device__ __forceinline__ void change_width(Sums (&d)[2]) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
#pragma unroll
        for (u32 i = 0; i < 64; ++i) {
            float sum;
            asm volatile("mov.f32 %0, %1;" : "=f"(sum) : "f"(d[half][i]));
            d[half][i] = sum;
        }
    }
}

// A descriptor of 128-byte rows in the 128-byte swizzle, which TMA wrote to an address that is a multiple of 1024.
// Groups of eight rows, 1024 bytes, follow each other. An operand that is contiguous along m or n has 64 of these per
// row, and `next` bytes from one 64 to the next.
__device__ __forceinline__ u64 descriptor(u32 address, u32 next) {
    constexpr u64 kSwizzle128 = 1ull << 62;
    constexpr u64 kEightRows = 1024ull >> 4 << 32;
    return kSwizzle128 | kEightRows | static_cast<u64>(next >> 4) << 16 | (address & 0x3ffff) >> 4;
}
